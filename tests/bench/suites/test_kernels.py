"""The kernels' benchmark: what it measures first, what it leaves out, and what its figures say."""

from __future__ import annotations

import itertools

import pytest

from fula_fast.bench.harness import kernel_cases as cases
from fula_fast.bench.harness.kernel_cases import NOUNS, PIXELS, SITES, Case
from fula_fast.bench.suites import kernels as bench

# Inductor of older releases uses what PyTorch has deprecated.
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PLACES = cases.ranked("cuda", [16, 1, 324], list(SITES), 128)


def test_every_place_is_measured_every_way_once():
    order = list(cases.schedule(PLACES, lambda: False))
    assert len(order) == len(set(order)) == 3 * (4 * 4 * 2 * 3 + len(PIXELS))
    assert order[:2] != order[-2:] and {way for way, _ in order} == set(cases.WAYS)
    assert set(NOUNS) == set(bench.NOUNS)


def test_the_most_telling_come_first():
    first = [(noun, case.site, case.dtype, case.lanes) for noun, case in PLACES[:6]]
    assert first == [
        (noun, "32x32", "bf16", lanes)
        for lanes in (16, 1, 324) for noun in ("stitch_hint", "lane_norm")
    ]  # fmt: skip


def test_a_few_tuned_cases_show_every_noun_and_every_resolution():
    tuned = [place for way, place in cases.schedule(PLACES, lambda: False) if way == "compile"]
    assert [(noun, case.site) for noun, case in tuned[:2]] == [
        ("stitch_hint", "32x32"), ("lane_norm", "32x32")
    ]  # fmt: skip
    few = tuned[:8]
    assert {noun for noun, _ in few} == {*NOUNS, *PIXELS}
    assert {case.site for _, case in few if case} == set(SITES)
    assert all((case.dtype, case.lanes) == ("bf16", 16) for _, case in few if case)


def test_tuning_begins_when_its_time_comes_and_has_something_to_compare_with():
    clock = itertools.count()
    order = list(cases.schedule(PLACES, lambda: next(clock) < 4))
    assert [way for way, _ in order[:5]] == ["eager", "ours", "eager", "ours", "compile"]
    for position, (way, place) in enumerate(order):
        if way == "compile":
            before = set(order[:position])
            assert {("eager", place), ("ours", place)} <= before


def test_all_else_is_measured_first_where_time_allows():
    ways = [way for way, _ in cases.schedule(PLACES, lambda: True)]
    assert "compile" not in ways[: 2 * len(PLACES)] and ways[2 * len(PLACES) :].count("eager") == 0


def test_what_fits_a_large_gpu(monkeypatch):
    """All 324 lanes of the stitch at 32x32, but not of eager's norm there."""
    monkeypatch.setattr(cases, "free_memory", lambda device: 0.9 * 79 * 2**30)
    most = Case("32x32", 324, "bf16", "cuda")
    for way in cases.WAYS:
        assert not cases.no_room("stitch_hint", way, most)
    assert not cases.no_room("lane_norm", "ours", most)
    assert cases.no_room("lane_norm", "eager", most) == "needs 122 GiB, 71 GiB are free"


@pytest.mark.parametrize("noun", NOUNS)
def test_ours_takes_no_more_than_is_said(noun):
    assert cases.peak_bytes(noun, "ours", Case("32x32", 324, "bf16", "cuda")) < 35 * 2**30


@compiles
@pytest.mark.slow
def test_a_report_names_what_was_left_out_and_why(monkeypatch):
    monkeypatch.setattr(
        bench, "measured_rates", lambda device: bench.Rates(1e9, {"bf16": 1e9, "fp32": 1e9})
    )
    monkeypatch.setattr(
        bench, "no_room", lambda noun, way, case: "" if case is None else "too large"
    )
    *_, report = bench.report("cpu", [1], ["4x4"], 2, 2, 1e9)
    assert {row["noun"] for row in report["rows"]} == set(PIXELS)
    assert [row["failed"] for row in report["rows"] if "failed" in row] == []
    assert {row["left_out"] for row in report["left_out"]} == {"too large"}
    assert len(report["left_out"]) == 4 * 2 * 3
    *_, report = bench.report("cpu", [1], ["4x4"], 2, 2, -1)
    assert {row["left_out"] for row in report["left_out"]} == {"no time"} and not report["rows"]


@compiles
@pytest.mark.parametrize(
    "way", [w if w != "compile" else pytest.param(w, marks=pytest.mark.slow) for w in cases.WAYS]
)
def test_every_part_is_measured_every_way(way):
    case = Case("4x4", 2, "fp32", "cpu", 2)
    rates = bench.Rates(1e9, {"fp32": 1e9})
    found = list(
        bench.rows("stitch_hint", case.label, way, bench.stitch_hint(case), rates, "cpu", 3)
    )
    assert [row["failed"] for row in found if "failed" in row] == []
    assert {row["part"] for row in found} == {"forward", "backward", "both"}
    assert [row["part"] for row in found if "derived" in row] == ["backward"] * (way == "compile")


def _row(noun: str, site: str, way: str, seconds: float, of_floor: float = 0.5) -> dict:
    timed = {"part": "both", "dtype": "bf16", "seconds": {"p50": seconds}, "of_floor": of_floor}
    return {"noun": noun, "site": site, "lanes": 16, "way": way, **timed}


def test_a_figure_says_how_many_cases_it_covers():
    rows = [
        _row("stitch_hint", "32x32", "ours", 1), _row("stitch_hint", "32x32", "eager", 5),
        _row("stitch_hint", "4x4", "ours", 1), _row("stitch_hint", "4x4", "eager", 3),
        _row("stitch_hint", "32x32", "compile", 2), _row("stitch_hint", "8x8", "compile", 1),
        _row("stitch_hint+y", "32x32", "ours", 1, 0.8),
        {"noun": "lane_norm", "way": "ours", "failed": "why"},
    ]  # fmt: skip
    found = {f["figure"]: (f["value"], f["target"]) for f in bench.summary(rows, 12)}
    assert found == {
        "stitch_hint, times eager's speed, worst of 2 of 12 cases": (3, 4.0),
        "stitch_hint, times compile's speed, worst of 1 of 12 cases": (2, 1.3),
        "stitch_hint+y at 32x32, share of the floor, worst of 1 cases": (0.8, 0.75),
    }
