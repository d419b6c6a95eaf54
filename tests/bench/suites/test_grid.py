"""The grid benchmark: what it extrapolates, counts and reports."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from rich.console import Console

from fula_fast.bench.harness import workload
from fula_fast.bench.harness.peer import METHODS, PEERS
from fula_fast.bench.harness.workload import Setting
from fula_fast.bench.suites import first_step, grid, scale
from fula_fast.device.precision import arithmetic
from fula_fast.errors import FulaError
from fula_fast.study import wave_memory
from fula_fast.study.resources import resources
from fula_fast.study.spec import EngineSpec

TINY = Setting("cpu", "fp32", width=2, batch=4, lanes=8, timed=2, warmup=1, mode="eager", image=8)


def here(function, *arguments):
    """In place of a process of its own."""
    return function(*arguments)


def test_pairs_of_a_grid():
    assert len(set(workload.pairs(324))) == 81
    assert workload.pairs(36) == [(s, s) for s in range(1, 10)]
    assert workload.pairs(12) == [(1, 1), (5, 5), (9, 9)]
    for lanes in (0, 10, 40):
        with pytest.raises(FulaError, match="lanes make no grid"):
            workload.pairs(lanes)


@pytest.mark.parametrize("lanes", [12, 36, 324])
def test_a_cost_linear_in_the_tail_is_extrapolated_exactly(lanes):
    setting = dataclasses.replace(TINY, lanes=lanes)
    flops = [site.flops for site in setting.description.sites]

    def cost(method: str, end: int) -> float:
        return METHODS.index(method) + 1 + 3e-6 * sum(flops[end:])

    def row(method: str, site: int) -> dict:
        seconds = {q: cost(method, site) for q in grid.QUANTILES}
        return {"method": method, "sites": [site, site], "seconds": seconds, "flops": 7}

    timed = [row(m, s) for m in METHODS for s in (1, 5, 9)]
    total = grid.peer_total({"cells": timed}, setting)
    every = [cost(m, end) for m in METHODS for _, end in workload.pairs(lanes)]
    assert total["p50"] == pytest.approx(setting.training_steps * sum(every))
    assert total["flops"] == pytest.approx(setting.training_steps * 7 * lanes)


def test_the_engine_s_time_is_that_of_both_phases():
    phases = {
        "short": {"steps": 90, "seconds": {"p20": 1, "p50": 2, "p80": 3}, "flops": 5},
        "full": {"steps": 10, "seconds": {"p20": 4, "p50": 5, "p80": 6}, "flops": 8},
    }
    expected = {"p20": 130, "p50": 230, "p80": 330, "flops": 530}
    assert grid.our_total({"phases": phases}) == expected


@pytest.mark.parametrize("full", [False, True])
def test_our_work_is_counted_as_the_design_derives_it(full):
    """One front pass, one native pass, per lane the tail forward and backward, and the stitches."""
    cells = workload.grid_cells(36)
    facts = TINY.description
    flops = [site.flops for site in facts.sites]
    head, expected = facts.head.flops, 0
    expected += sum(flops) + (sum(flops) + head)  # the front; the native end, for SLM to its head
    for cell in cells:
        channels, height, width = facts.sites[cell.end_site - 1].shape
        expected += 2 * 2 * channels**2 * height * width  # Y, and dW
        if cell.method == "hint":  # in the last steps forward too, for its statistics
            expected += full * sum(flops[cell.end_site :])
        else:
            to_head = 0 if cell.method == "fula" else head
            expected += 2 * (sum(flops[cell.end_site :]) + to_head)
            # lanes are picked among the logits: FuLA's in flight pass the head with the others
            expected += 2 * head * (cell.method == "fula" and cell.end_site < len(flops))
        # FuLA at the last site is Hint: no tail and no functional term behind it
    assert workload.our_flops(TINY, cells, full) == pytest.approx(TINY.batch * expected, rel=1e-3)


def test_vmap_s_time_is_that_of_all_lanes_steps():
    row = {"seconds": {"p20": 1.0, "p50": 2.0, "p80": 3.0}, "flops": 5}
    steps = TINY.training_steps
    expected = {"p20": steps, "p50": 2 * steps, "p80": 3 * steps, "flops": 5 * steps}
    assert grid.vmap_total(row, TINY) == expected


def test_waves_keep_to_the_memory_that_a_sweep_plans_with():
    setting = dataclasses.replace(TINY, lanes=36, width=32, batch=128, image=32)
    waves = grid.waves_within(setting, 2 * 2**30)
    ((cells, turns),) = waves
    assert sorted(int(cell.id) for cell in cells) == list(range(36))
    assert sorted(turns) == sorted(cell.id for cell in cells)
    facts, fused = workload.donor_facts_of(setting), resources(EngineSpec()).fused
    lanes = {cell.id: wave_memory.lane_of(cell) for cell in cells}
    shared = wave_memory.shared_bytes(lanes.values(), facts, facts, 128, 4)
    count = max(turns.values()) + 1
    assert 2 < count < 20
    sums = []
    for turn in range(count):
        own = [lanes[name] for name, number in turns.items() if number == turn]
        each = [wave_memory.lane_bytes(lane, facts, facts, 128, 4, fused) for lane in own]
        sums.append([sum(column) for column in zip(*each, strict=True)])
    assert shared + wave_memory.lanes_bytes(sums) <= 2 * 2**30
    with pytest.raises(FulaError, match="memory"):
        grid.waves_within(setting, 30 * 2**20)


def test_waves_add_up_and_the_largest_s_memory_counts():
    def row(scale: float, peak: int):
        seconds = {"n": 5, "p20": scale, "p50": 2 * scale, "p80": 3 * scale}
        phases = {name: {"steps": 7, "seconds": seconds, "flops": 10} for name in ("short", "full")}
        return {
            "name": "ours", "precision": "fp32", "first_step_seconds": scale, "peak_bytes": peak,
            "phases": phases, "turns": 2,
        }  # fmt: skip

    found = grid.together([row(1.0, 30), row(2.0, 20)])
    assert (found["name"], found["waves"], found["peak_bytes"]) == (grid.WITHIN, 2, 30)
    assert found["turns"] == 4
    assert found["phases"]["full"]["seconds"] == {"n": 5, "p20": 3.0, "p50": 6.0, "p80": 9.0}
    assert grid.our_total(found) == {"p20": 42.0, "p50": 84.0, "p80": 126.0, "flops": 280}


@pytest.mark.parametrize("least", [0, 2**50], ids=["vmap needs less", "vmap needs more"])
def test_the_engine_comes_once_more_where_vmap_needs_less(monkeypatch, least):
    """A measured resident set is no number that a test can know: peaks are given."""
    peaks = {"measure_ours": 2**40, "measure_peer": 1, "measure_vmap": least or 2**39}
    measured = []

    def given(function, *arguments):
        if function is grid.measured_rate:
            return 1e12
        measured.append(function.__name__)
        return function(*arguments) | {"peak_bytes": peaks[function.__name__]}

    *_, found = grid.compare(TINY, "the command", given)
    again = [row["figure"] for row in found["summary"] if "vmap" in row["figure"]]
    assert measured.count("measure_ours") == (1 if least else 2)
    assert ("times the vmap peer's speed, within its memory" in again) == (not least)


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "measured_rate", lambda setting: 1e12)
        *_, report = grid.compare(TINY, "the command", here)
        return report


def test_a_report_holds_what_a_figure_needs(report):
    names = [row["name"] for row in report["rows"]]
    assert names[:4] == ["ours", "published", "fair", "vmap"] and names[4:] in ([], [grid.WITHIN])
    assert {"hardware", "versions", "commit", "command", "formula", "time"} <= set(report)
    for name in ("ours", *PEERS, "vmap"):
        total = report["totals"][name]
        assert 0 < total["p20"] <= total["p50"] <= total["p80"]
    assert all(row["peak_bytes"] >= 0 for row in report["rows"])
    assert report["totals"]["published"]["passes"] > 3 > report["totals"]["ours"]["passes"]
    json.dumps(report, allow_nan=False)


def test_every_method_is_timed_at_both_ends_of_the_grid(report):
    (cells,) = [row["cells"] for row in report["rows"] if row["name"] == "fair"]
    assert {(c["method"], *c["sites"]) for c in cells} == {
        (m, s, s) for m in METHODS for s in (1, 9)
    }
    assert all(c["seconds"]["n"] == TINY.timed for c in cells)


def test_speed_is_the_ratio_of_whole_trainings(report):
    totals = report["totals"]
    found = {row["figure"]: row["value"] for row in report["summary"]}
    expected = totals["published"]["p50"] / totals["ours"]["p50"]
    assert found["times the published peer's speed"] == pytest.approx(expected)


def test_the_table_shows_every_contender(report, capsys):
    Console(width=120).print(grid.table(report))
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("ours", *PEERS, "vmap"))
    assert any("target 4" in line for line in grid.summary_lines(report))


def test_the_command_repeats_the_setting():
    import argparse

    command = workload.command_of("grid", TINY).split()
    assert command[:3] == ["python", "-m", "fula_fast.bench.suites.grid"]
    parser = argparse.ArgumentParser()
    workload.add_options(parser)
    assert workload.setting_of(parser.parse_args(command[3:])) == TINY


class Seen(Exception):
    """Raised with what was set when the engine's wave was made."""


def _arithmetic_now() -> tuple:
    cudnn = torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, precision


@pytest.mark.parametrize("precision", ["bf16", "fp32", "tf32"])
@pytest.mark.parametrize(
    "module,measure",
    [
        (grid, grid.measure_ours),
        (scale, lambda setting: scale.measure(setting, 1)),
        (first_step, first_step.once),
    ],
    ids=["grid", "scale", "first_step"],
)
def test_the_engine_computes_as_in_a_sweep(monkeypatch, module, measure, precision):
    def make(*arguments, **options):
        raise Seen(_arithmetic_now())

    monkeypatch.setattr(module, "OurWave", make)
    monkeypatch.setattr(module, "PeakMemory", lambda device: None, raising=False)
    with arithmetic(precision):
        expected = _arithmetic_now()
    with pytest.raises(Seen) as found:
        measure(dataclasses.replace(TINY, device="cuda", precision=precision))
    assert found.value.args == (expected,) and not expected[0]


def test_scale_measures_every_count(tmp_path):
    report = scale.run(TINY, [1, 3], tmp_path, isolation=here)
    assert json.loads((tmp_path / "scale-cpu.json").read_text()) == report
    assert [row["lanes"] for row in report["rows"]] == [1, 3]
    one, three = (row["flops_per_lane"] for row in report["rows"])
    assert three < one  # the shared passes are spread over more lanes
    Console(width=120).print(scale.table(report))


def test_counts_grow_by_doubling():
    assert scale.counts_up_to(36) == [1, 2, 4, 8, 16, 32, 36]
    assert scale.counts_up_to(1) == [1]


def test_a_cost_that_rises_again_is_seen():
    rows = [{"seconds_per_lane": {"p50": p50}} for p50 in (4.0, 1.0, 2.0)]
    fell, flat = scale.summary(rows)
    assert fell["value"] == 2.0 > fell["target"]
    assert flat["value"] == 0.5 < flat["target"]


def test_lanes_in_turns_run_in_the_mode_of_a_sweep():
    setting = dataclasses.replace(TINY, mode="compiled")
    cells = workload.grid_cells(TINY.lanes)
    turns = {cell.id: number % 2 for number, cell in enumerate(cells)}
    ran = workload.OurWave(setting, cells, turns=turns)
    assert ran.mode == "eager" and len(ran.wave.turns) == 2
