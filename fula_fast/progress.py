"""What a running sweep tells its user: a live display on a terminal, else a line per interval.

The sweep calls the methods of `Progress` and knows nothing of displays; `Progress` itself is
silent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .errors import not_none

if TYPE_CHECKING:
    from rich.console import Console

INTERVAL = 10.0
"""Seconds between two plain lines."""


@dataclass(frozen=True)
class LaneLoss:
    """A lane, in a few words, and its loss."""

    lane: str
    loss: float

    def __str__(self) -> str:
        return f"{self.loss:.3f} ({self.lane})"


class Progress:
    """The events of a run. This base class shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def run_started(self, cells: int, done: int, work: float = 0.0) -> None:
        """A run of `cells` cells, of which `done` were finished before; `work`: FLOPs of its waves
        that are to be done."""

    def donor_started(self, name: str) -> None:
        """A donor is looked for, and trained where it is not there."""

    def donor_epoch(self, name: str, epoch: int, epochs: int, loss: float) -> None:
        """`epoch` of `epochs` of a donor's training is over."""

    def donor_done(self, name: str, accuracy: float | None) -> None:
        """A donor is ready; `accuracy` on its test set, in [0, 1], where it is known."""

    def wave_started(self, lanes: int, steps: int, work: float = 0.0) -> None:
        """A wave of `lanes` lanes begins, `steps` training steps long; `work`: its FLOPs."""

    def step(self, done: int, images_per_s: float | None = None, memory: int | None = None) -> None:
        """`done` steps of the wave are over; `memory`: bytes in use."""

    def losses(self, worst: LaneLoss, best: LaneLoss) -> None:
        """The wave's lanes with the largest and the smallest loss."""

    def cell_done(self, row: Mapping[str, Any]) -> None:
        """A cell is finished; `row` is its result row."""

    def note(self, text: str) -> None:
        """Something the user should know, on one line."""


@dataclass
class _Wave:
    """The wave in progress, as the displays show it."""

    lanes: int
    steps: int
    started: float
    work: float = 0.0
    done: int = 0
    first: int = 0
    images_per_s: float | None = None
    memory: int | None = None
    worst: LaneLoss | None = None
    best: LaneLoss | None = None

    def rate(self, now: float) -> float:
        """Steps per second since the wave's first report."""
        seconds = now - self.started
        return (self.done - self.first) / seconds if seconds > 0 else 0.0

    def left(self, now: float, later: float) -> float | None:
        """Seconds to the end of the run, if the waves behind this one, of `later` FLOPs, go on at
        this one's pace; None before there is a pace."""
        rate, rest = self.rate(now), self.steps - self.done
        if rate <= 0:
            return None
        per_step = self.work / self.steps if self.steps else 0.0
        return (rest + (later / per_step if per_step else 0.0)) / rate

    def describe(self, now: float, later: float = 0.0) -> str:
        """`later`: FLOPs of the run's waves behind this one."""
        rate = self.rate(now)
        parts = [f"step {self.done}/{self.steps}", f"{self.lanes} lanes", f"{rate:.2f} steps/s"]
        if self.images_per_s is not None:
            parts.append(f"{self.images_per_s:,.0f} images/s")
        if self.best is not None and self.worst is not None:
            parts.append(f"loss {self.best} to {self.worst}")
        if self.memory is not None:
            parts.append(f"{self.memory / 2**30:.1f} GiB")
        if (seconds := self.left(now, later)) is not None:
            parts.append(f"{duration(seconds)} left")
        return ", ".join(parts)


class _Counting(Progress):
    """Keeps what any display needs: counts, the wave in progress."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.cells = self.finished = self.failed = 0
        self.later = 0.0
        self.wave: _Wave | None = None

    def run_started(self, cells: int, done: int, work: float = 0.0) -> None:
        self.cells, self.finished, self.later = cells, done, work

    def wave_started(self, lanes: int, steps: int, work: float = 0.0) -> None:
        self.later = max(self.later - work, 0.0)
        self.wave = _Wave(lanes, steps, self.clock(), work)

    def step(self, done: int, images_per_s: float | None = None, memory: int | None = None) -> None:
        wave = self.wave
        if wave is None:
            return
        if wave.done == 0:  # the first step holds compilation, or a checkpoint's steps
            wave.first, wave.started = done, self.clock()
        wave.done, wave.images_per_s, wave.memory = done, images_per_s, memory

    def losses(self, worst: LaneLoss, best: LaneLoss) -> None:
        if self.wave is not None:
            self.wave.worst, self.wave.best = worst, best

    def cell_done(self, row: Mapping[str, Any]) -> None:
        self.finished += 1
        self.failed += row.get("status") == "failed"

    def counts(self) -> str:
        """ "3/45 cells", with the failed ones."""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.finished}/{self.cells} cells{failed}"


class LineProgress(_Counting):
    """Plain lines: every event at once, steps and cells at most one line per interval."""

    def __init__(
        self,
        write: Callable[[str], None],
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self.write, self.interval = write, interval
        self.last = clock()

    def run_started(self, cells: int, done: int, work: float = 0.0) -> None:
        super().run_started(cells, done, work)
        self.write(f"{cells} cells, {done} done before")

    def donor_epoch(self, name: str, epoch: int, epochs: int, loss: float) -> None:
        if epoch == 1 or self._due():  # one found trained has no epochs to tell of
            self.write(f"donor {name}: epoch {epoch}/{epochs}, loss {loss:.3f}")

    def donor_done(self, name: str, accuracy: float | None) -> None:
        self.write(_ready(name, accuracy))

    def wave_started(self, lanes: int, steps: int, work: float = 0.0) -> None:
        super().wave_started(lanes, steps, work)
        if lanes > 1 or self._due():  # the solo executor has a wave for every cell
            self.write(f"wave: {lanes} lanes, {steps} steps")

    def step(self, done: int, *args: Any, **values: Any) -> None:
        super().step(done, *args, **values)
        if self.wave is not None and self._due():
            self.write(f"{self.wave.describe(self.clock(), self.later)}; {self.counts()}")

    def cell_done(self, row: Mapping[str, Any]) -> None:
        super().cell_done(row)
        if row.get("status") == "failed":
            self.write(f"cell {row.get('cell')} failed: {row.get('error')}")
        if self.finished == self.cells or self._due():
            self.write(self.counts())

    def note(self, text: str) -> None:
        self.write(text)

    def _due(self) -> bool:
        now = self.clock()
        if now - self.last < self.interval:
            return False
        self.last = now
        return True


class LiveProgress(_Counting):
    """A live display: one bar for the cells, one for what is running; notes scroll above."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn())
        self.bars = Bars(*columns, TextColumn("{task.fields[text]}"), console=console)
        self.total = self.bars.add_task("cells", total=None, text="")
        self.current = self.bars.add_task("", total=None, text="", visible=False)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def run_started(self, cells: int, done: int, work: float = 0.0) -> None:
        super().run_started(cells, done, work)
        self.bars.update(self.total, total=cells, completed=done)

    def donor_started(self, name: str) -> None:
        self._show(f"donor {name}", None, 0, "")

    def donor_epoch(self, name: str, epoch: int, epochs: int, loss: float) -> None:
        self._show(f"donor {name}", epochs, epoch, f"epochs, loss {loss:.3f}")

    def donor_done(self, name: str, accuracy: float | None) -> None:
        self.bars.update(self.current, visible=False)
        self.note(_ready(name, accuracy))

    def wave_started(self, lanes: int, steps: int, work: float = 0.0) -> None:
        super().wave_started(lanes, steps, work)
        self._show("wave", steps, 0, f"{lanes} lanes")

    def step(self, done: int, *args: Any, **values: Any) -> None:
        super().step(done, *args, **values)
        if self.wave is not None:
            text = self.wave.describe(self.clock(), self.later).partition(", ")[2]
            self._show("wave", self.wave.steps, done, text)

    def cell_done(self, row: Mapping[str, Any]) -> None:
        super().cell_done(row)
        failed = f"{self.failed} failed" if self.failed else ""
        self.bars.update(self.total, completed=self.finished, text=failed)
        if row.get("status") == "failed":
            self.note(f"cell {row.get('cell')} failed: {row.get('error')}")

    def note(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, name: str, total: int | None, done: int, text: str) -> None:
        self.bars.update(
            self.current, description=name, total=total, completed=done, text=text, visible=True
        )


class NotebookProgress(_Counting):
    """Two bars in a notebook's output; `show` gets HTML that replaces what was shown before."""

    def __init__(
        self, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock)
        self.show, self.notes = show, []
        self.last, self.current = -INTERVAL, ("", 0, 0)

    def __exit__(self, *error: object) -> None:
        self.current = ("", 0, 0)
        self._draw()

    def run_started(self, cells: int, done: int, work: float = 0.0) -> None:
        super().run_started(cells, done, work)
        self._draw()

    def donor_epoch(self, name: str, epoch: int, epochs: int, loss: float) -> None:
        self._draw_soon(f"donor {name}, loss {loss:.3f}", epoch, epochs)

    def donor_done(self, name: str, accuracy: float | None) -> None:
        self.note(_ready(name, accuracy))

    def step(self, done: int, *args: Any, **values: Any) -> None:
        super().step(done, *args, **values)
        if self.wave is not None:
            self._draw_soon(self.wave.describe(self.clock(), self.later), done, self.wave.steps)

    def cell_done(self, row: Mapping[str, Any]) -> None:
        super().cell_done(row)
        if row.get("status") == "failed":
            self.notes.append(f"cell {row.get('cell')} failed: {row.get('error')}")
        self._draw()

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._draw()

    def _draw_soon(self, text: str, done: int, total: int) -> None:
        """At most a few times a second: drawing goes through the browser."""
        self.current = (text, done, total)
        if self.clock() - self.last >= _REDRAWN:
            self._draw()

    def _draw(self) -> None:
        self.last = self.clock()
        text, done, total = self.current
        bars = [_bar(self.counts(), self.finished, self.cells)]
        bars += [_bar(text, done, total)] if text else []
        self.show("".join([*bars, *(f"<div>{escape(note)}</div>" for note in self.notes)]))


_REDRAWN = 0.25


def _ready(name: str, accuracy: float | None) -> str:
    known = "ready" if accuracy is None else f"test accuracy {accuracy:.4f}"
    return f"donor {name}: {known}"


def _bar(text: str, done: int, total: int) -> str:
    return f'<div><progress value="{done}" max="{total or 1}"></progress> {escape(text)}</div>'


def duration(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def open_progress() -> Progress:
    """A live display where standard error is a terminal, bars in a notebook, else plain lines on
    standard error."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        return NotebookProgress(_in_notebook())
    if console.is_terminal:
        return LiveProgress(console)
    return LineProgress(lambda text: print(text, file=sys.stderr, flush=True))


def _in_notebook() -> Callable[[str], None]:
    """A place in the running cell's output that HTML is written to, again and again."""
    from IPython.display import HTML, display  # there, as a notebook runs

    handle = not_none(display(HTML(""), display_id=True))
    return lambda text: handle.update(HTML(text))
