"""Lanes that take turns in the tail: the same numbers as in one turn, and as alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fula_fast import stops, sweep
from fula_fast.device.graphs import Rerun
from fula_fast.engine import run
from fula_fast.engine.captured import Captured
from fula_fast.engine.modes import Stepper, runner_of
from fula_fast.engine.network import run_plain
from fula_fast.engine.wave import Wave
from fula_fast.study.plan import plan_here
from fula_fast.study.spec import load_spec

from . import test_exactness as exactness
from .conftest import WAVES, assert_same, cells, prepared, taken
from .test_stages import bordered


def in_turns(group, count: int) -> dict[str, int]:
    """Neither the order of the lanes nor that of the sites; with a number left out."""
    return {c.id: 2 * (n % count) for n, c in enumerate(group)}


def by_cell(wave: Wave) -> dict[str, dict[str, torch.Tensor]]:
    """All that training changed, lane by lane."""
    found = {}
    for n, lane in enumerate(wave.lanes):
        statistics = {name: t[n] for name, t in wave.state().items() if name.startswith("tail/")}
        records = {
            name: getattr(wave, name)[n] for name in ("loss", "epoch_loss", "terms", "dead_at")
        }
        found[lane.cell.id] = wave.bank.lane_state(n) | statistics | records
    return found


def assert_close(ours: Wave, theirs: Wave, tolerance: float) -> None:
    expected, found = by_cell(theirs), by_cell(ours)
    assert found.keys() == expected.keys()
    for name, tensors in found.items():
        for part, value in tensors.items():
            close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
            torch.testing.assert_close(value, expected[name][part], **close)


@pytest.mark.parametrize(
    "shared",
    [
        {},
        {"bn": "eval"},
        {"bn": "train", "target_bn": "eval"},
        {"stitch_bn": "both", "optimiser": "sgd"},
    ],
    ids=str,
)
def test_lanes_in_turns_equal_their_cells(shared):
    """Of every method and weighting; some turns have lanes that train, settle or pass alone."""
    pair, group = (exactness.donor(0), exactness.donor(1)), exactness.grid(**shared)
    wave = exactness.run_wave(group, *pair, 3, turns=in_turns(group, 3))
    assert len(wave.turns) == 3
    exactness.assert_equal(wave, *pair, steps=3)
    assert_close(wave, exactness.run_wave(group, *pair, 3), 1e-11)


def test_a_turn_settles_as_its_lanes_would_together():
    """Two phases: the turn of lanes without a functional term passes the tail in the last alone."""
    pair = exactness.donor(0), exactness.donor(1)
    for model in pair:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.9
    group = [
        exactness.cell(0, 8, 7, "hint"),
        exactness.cell(1, 8, 8, "dm"),
        exactness.cell(2, 9, 7, "fula"),
    ]
    turns = {"0": 0, "1": 0, "2": 1}
    waves = [exactness.run_wave(group, *pair, 20, turns=t) for t in (turns, {})]
    assert waves[0].settling_from == waves[1].settling_from == 11
    assert_close(*waves, 1e-11)


@pytest.mark.parametrize("combine", ["sum", "pcgrad"])
def test_stages_and_combined_gradients_in_turns(combine):
    """A lane of a turn that has no gradient in a stage takes none over from the stage before."""
    group = bordered(combine)
    (task, wave), (_, whole) = (
        prepared(group, dtype="fp64", turns=turns) for turns in (in_turns(group, 2), {})
    )
    taken(Stepper(task, wave, "eager"))
    taken(Stepper(task, whole, "eager"))
    assert_close(wave, whole, 1e-10)


@pytest.mark.parametrize("kind", ["clean", "attacked"])
def test_turns_are_recorded(kind):
    """Bit for bit as they are taken eagerly; in an attacked wave too."""
    group = cells(WAVES[kind][0], **WAVES[kind][1])
    options = {"turns": in_turns(group, 3)}
    (task, plain), (_, wave) = (prepared(group, **options) for _ in range(2))
    recorded = Captured(task, wave, Rerun())
    assert taken(recorded) == taken(Stepper(task, plain, "eager")) == list(range(6))
    assert_same(wave, plain)
    (_, whole) = prepared(group)
    taken(Stepper(task, whole, "eager"))
    assert_close(wave, whole, 1e-4)


def test_an_interrupt_that_was_dropped_ends_a_recorded_wave():
    group = exactness.grid()[:4]
    task, wave = prepared(group)
    steps = Captured(task, wave, Rerun()).epoch(0)
    with stops.heard():
        next(steps)
        stops.remember(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            next(steps)


def test_a_lane_that_fails_is_one_of_its_turn_alone():
    pair = exactness.donor(0), exactness.donor(1)
    group = exactness.grid()[:4]
    broken = replace(group[0], id="broken")
    initial = exactness.stitches([*group, broken], *pair)
    initial["broken"].weight.data.fill_(float("nan"))
    turns = {c.id: n % 2 for n, c in enumerate([*group, broken])}
    wave = Wave([*group, broken], *pair, initial, 4, dtype=torch.float64, turns=turns)
    for number, (x, y) in enumerate(exactness.batches(4)):
        wave.step(x, y, number)
    dead = {lane.cell.id for n, lane in enumerate(wave.lanes) if int(wave.dead_at[n]) >= 0}
    assert dead == {"broken"}


def test_turns_with_dropout_equal_one_turn():
    """Masks go with the image: every turn has the same."""
    group = cells(dropout="train")
    waves = [prepared(group, dtype="fp64", turns=t) for t in (in_turns(group, 3), {})]
    for task, wave in waves:
        taken(Stepper(task, wave, "eager"))
    assert_close(waves[0][1], waves[1][1], 1e-10)


def test_turns_that_run_out_of_memory_are_halved(monkeypatch):
    """In the same wave, until each has one lane; then the wave is split."""
    plain, seen = run.Wave, []

    def wave(group, *args, turns, **options):
        seen.append(sorted(Counter(turns[c.id] for c in group).values()))
        if len(seen) < 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return plain(group, *args, turns=turns, **options)

    group = cells()
    task, _ = prepared(group)
    given = replace(
        task, dm_images=lambda _: torch.rand(8, 3, 8, 8), epochs=1,
        turns={c.id: int(n > 3) for n, c in enumerate(group)},
    )  # fmt: skip
    monkeypatch.setattr(run, "Wave", wave)
    parts = list(run.run_wave(given))
    assert seen[:4] == [[2, 4], [1, 1, 2, 2], [1] * 6, [1] * 3]
    assert [len(part) for part in parts] == [3, 3]


@pytest.mark.parametrize(
    ("mode", "device", "turns", "runs", "compiles"),
    [
        ("compiled", "cpu", 1, "compiled", True),
        ("compiled", "cpu", 2, "eager", False),
        ("auto", "cpu", 2, "eager", False),
        ("captured", "cuda", 4, "captured", True),
        ("captured", "cuda", 5, "captured", False),
    ],
)
def test_stages_of_many_turns_are_not_compiled(mode, device, turns, runs, compiles):
    """Each turn has shapes of its own; the compiler has a limit of them, and takes memory. The user
    is told."""
    notes = []
    task, _ = prepared(cells())
    task = replace(
        task, mode=mode, flops=1e18, turns={str(n): min(n, turns - 1) for n in range(6)},
        progress=SimpleNamespace(note=notes.append), device=torch.device(device), compile=True,
    )  # fmt: skip
    found, runner = runner_of(task)
    assert (found, runner is not run_plain) == (runs, compiles)
    assert len(notes) == (not compiles)


SPEC = {
    "data": {"source": "digits", "size": 16},
    "donors": {
        name: {"model": "resnet18", "width": 8, "seed": k, "epochs": 1}
        for k, name in enumerate("ab")
    },
    "grid": {
        "front": "a",
        "end": "b",
        "sites": [1, 2, 8],
        "methods": ["hint", "fula", "slm", "tlm"],
    },
    "protocol": {"epochs": 1},
    "evaluation": {"measures": ["linear_cka", "terms"]},
}


def test_a_sweep_in_little_memory_takes_turns_and_finds_the_same(tmp_path):
    rows = {}
    for memory in ("100%", 230 * 2**20):
        spec = SPEC | {"engine": {"device": "cpu", "precision": "fp32", "memory": memory}}
        (wave,) = plan_here(load_spec(spec)).waves
        assert (len(wave.turns) > 1) == (memory != "100%")
        assert sum(wave.turns) in (0, len(wave.cells))
        found = sweep(spec, out=tmp_path / str(memory))
        rows[memory] = {row["cell"]: row for row in found.rows}
    one, other = rows.values()
    assert one.keys() == other.keys() and len(one) == 12
    for name, row in one.items():
        for column in ("accuracy", "loss", "term_stitch", "linear_cka_stitch"):
            assert other[name].get(column) == pytest.approx(row.get(column), abs=2e-3), column
