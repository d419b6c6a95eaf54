"""What a run tells its user, in plain lines and live."""

import io
import sys
import types

import pytest

from fula_fast.progress import (
    LaneLoss,
    LineProgress,
    LiveProgress,
    NotebookProgress,
    Progress,
    duration,
    open_progress,
)


class Clock:
    """A clock that moves when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def lines(interval=10.0):
    written, clock = [], Clock()
    return LineProgress(written.append, interval, clock), written, clock


def test_the_base_class_is_silent(capsys):
    with Progress() as progress:
        progress.run_started(3, 0)
        progress.step(1)
        progress.cell_done({"status": "ok"})
        progress.note("anything")
    assert capsys.readouterr() == ("", "")


def test_steps_write_one_line_per_interval():
    progress, written, clock = lines()
    progress.run_started(8, 0)
    progress.wave_started(lanes=8, steps=100)
    del written[:]
    for step in range(1, 101):
        clock.now += 1.0
        progress.step(step, images_per_s=1234.5, memory=3 * 2**30)
        if step == 5:  # told once an epoch, shown from then on
            progress.losses(LaneLoss("tlm 9→1", 0.9), LaneLoss("hint 1→1", 0.1))
    assert len(written) == 10
    assert written[0].startswith("step 10/100, 8 lanes, 1.00 steps/s, 1,234 images/s")
    for line in written:
        assert "loss 0.100 (hint 1→1) to 0.900 (tlm 9→1)" in line and "3.0 GiB" in line
    assert "1:30 left" in written[0] and "0/8 cells" in written[0]


def test_the_rate_leaves_out_the_first_report():
    """The first step holds compilation; after a resume it also holds the steps done before."""
    progress, written, clock = lines(interval=1.0)
    progress.wave_started(lanes=1, steps=60)
    clock.now += 500
    progress.step(40)
    clock.now += 2
    progress.step(50)
    assert "5.00 steps/s" in written[-1] and "0:02 left" in written[-1]


def test_waves_of_one_cell_keep_to_the_interval():
    progress, written, clock = lines()
    progress.wave_started(lanes=45, steps=9)
    for _ in range(3):
        clock.now += 4
        progress.wave_started(lanes=1, steps=9)
    assert written == ["wave: 45 lanes, 9 steps", "wave: 1 lanes, 9 steps"]


def test_failed_cells_are_told_at_once_with_their_error():
    progress, written, _ = lines()
    progress.run_started(2, 0)
    progress.cell_done({"status": "failed", "cell": "abc", "error": "loss is nan"})
    progress.cell_done({"status": "ok", "cell": "def"})
    assert "cell abc failed: loss is nan" in written
    assert written[-1] == "2/2 cells, 1 failed"


def test_donors_and_notes():
    progress, written, clock = lines()
    progress.donor_started("a")
    progress.donor_epoch("a", 1, 15, 0.9)
    progress.donor_epoch("a", 2, 15, 0.7)
    clock.now += 11
    progress.donor_epoch("a", 3, 15, 0.5)
    progress.donor_epoch("a", 4, 15, 0.4)
    progress.donor_done("a", 0.9512)
    progress.note("by the way")
    assert written == [
        "donor a: epoch 1/15, loss 0.900",
        "donor a: epoch 3/15, loss 0.500",
        "donor a: test accuracy 0.9512",
        "by the way",
    ]


def test_the_live_display_shows_the_same_facts():
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with LiveProgress(console) as progress:
        progress.run_started(4, 1)
        progress.donor_started("a")
        progress.donor_epoch("a", 1, 2, 0.5)
        progress.donor_done("a", 0.97)
        progress.wave_started(3, 50)
        progress.losses(LaneLoss("tlm 9→1", 0.9), LaneLoss("hint 1→1", 0.1))
        progress.step(10, 100.0, 2**30)
        progress.cell_done({"status": "failed", "cell": "abc", "error": "[nan]"})
        progress.note("a [note]")
    shown = console.file.getvalue()
    assert "donor a: test accuracy 0.9700" in shown and "a [note]" in shown
    assert "cell abc failed: [nan]" in shown and "3 lanes" in shown and "2/4" in shown
    assert "loss 0.100 (hint 1→1)" in shown and "1.0 GiB" in shown


def test_plain_lines_where_standard_error_is_no_terminal(capsys):
    with open_progress() as progress:
        progress.note("hello")
    assert capsys.readouterr().err == "hello\n"


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (62.4, "1:02"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("first, second", [(1.0, 1.0), (1.0, 3.0), (2.0, 1.0)])
def test_the_time_left_is_the_runs(first, second):
    """Two waves of `first` and `second` FLOPs a step; each step of the first takes a second."""
    progress, written, clock = lines()
    progress.run_started(16, 0, work=100 * (first + second))
    progress.wave_started(8, 100, work=100 * first)
    for step in range(1, 22):  # the pace is taken from the first report on
        clock.now += 1.0
        progress.step(step)
    expected = 79 + 100 * second / first
    assert progress.wave.left(clock.now, progress.later) == pytest.approx(expected)
    assert f"{duration(expected + 1)} left" in written[-1]  # the last line is a second old
    progress.wave_started(8, 100, work=100 * second)
    assert progress.later == 0


def test_a_notebook_gets_two_bars_that_are_replaced():
    shown, clock = [], Clock()
    progress = NotebookProgress(shown.append, clock)
    with progress:
        progress.run_started(4, 1)
        progress.note("a < b")
        progress.donor_done("x", 0.5)
        progress.wave_started(3, 100)
        for step in range(1, 101):
            clock.now += 0.01
            progress.step(step)
        progress.cell_done({"status": "failed", "cell": "c1", "error": "NaN & more"})
    assert 5 < len(shown) < 20  # not once a step
    assert any('max="100"' in html and "3 lanes" in html for html in shown)
    assert 'value="2" max="4"' in shown[-1] and "1 failed" in shown[-1]
    assert "a &lt; b" in shown[-1] and "NaN &amp; more" in shown[-1]
    assert shown[-1].count("<progress") == 1  # what ran has ended


def test_the_display_of_a_notebook(monkeypatch):
    """As in a notebook's kernel: rich knows one, and IPython's display takes the HTML."""
    shown = []

    class Handle:
        def update(self, html):
            shown.append(html)

    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, lambda first, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with open_progress() as progress:
        progress.run_started(2, 0)
    assert isinstance(progress, NotebookProgress) and 'max="2"' in shown[-1]
