"""The benchmark of the streams: waiting is what the wave waits, and figures stand by their targets."""

import time

import pytest

pytest.importorskip("torchvision")
from fula_fast.bench.suites.data import Handed, _waiting_row, measure, summary, waiting_of


class Slow:
    """Batches of 20 ms each, the first of 60."""

    def epoch(self, epoch, start_step=0):
        for step in range(start_step, 100):
            time.sleep(0.02 if step else 0.06)
            yield step


def steps(handed):
    for _ in handed.epoch(0):
        time.sleep(0.06)
        yield


def test_waiting_is_the_time_in_the_stream():
    handed = Handed("cpu")
    handed.source = Slow()
    share, step, first = waiting_of(steps(handed), handed)
    assert len(handed.waited) == handed.steps
    assert share == pytest.approx(0.25, abs=0.1) and step == pytest.approx(0.08, rel=0.3)
    assert first == pytest.approx(0.06, rel=0.5)


def test_every_target_stands_by_its_figure():
    rates = {"resident-graph-cuda": 2e7, "dali-memory-cpu": 5e4, "dali-jpeg-cpu": 24e3,
             "dataloader-jpeg-0-workers": 4e3, "dataloader-jpeg-2-workers": 6e3}  # fmt: skip
    rows = [{"name": n, "images_per_second": {"p50": rate}} for n, rate in rates.items()]
    found = [_waiting_row(f"{n}-memory-cpu", [(0.01, 1.0, 0.1)] * 3) for n in ("dali", "resident")]
    figures = {f["figure"]: (f["value"], f["target"]) for f in summary(rows, found)}
    assert figures["resident-graph-cuda, images/s"] == (2e7, 10e6)
    assert figures["dali-memory-cpu, images/s"] == (5e4, 25e3)
    assert figures["dali-jpeg-cpu, images/s"] == (24e3, None)
    assert figures["dali-jpeg-cpu, times a DataLoader"] == (4, 3)
    waits = "share of the step not spent waiting, "
    assert figures[waits + "resident-memory-cpu"] == (0.99, 0.98)
    assert figures[waits + "dali-memory-cpu"] == (0.99, None)


def test_rows_carry_rates_and_targets():
    rows = measure({"dali-memory-cpu": lambda: [(None, [0] * 50)] * 2, "other": list}, 2)
    assert [row["target"] for row in rows] == [25e3, None]
    assert rows[0]["images_per_second"]["n"] == 2
