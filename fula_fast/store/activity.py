"""What a run is doing, told from its folder alone: from any machine, while others write there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from .run_folder import Store

Waves = Mapping[str, Sequence[str]]
"""The ids of each wave's cells."""


@dataclass(frozen=True)
class Running:
    """A worker at work: on which machine, as which process, since when (Unix seconds), on which
    wave of how many cells; `epochs`: of the wave's checkpoint, None before the first."""

    host: str
    pid: int
    since: float
    wave: str
    cells: int
    epochs: int | None


@dataclass(frozen=True)
class Status:
    """Cells of a run by what became of them; they add up to `cells`.

    `interrupted`: of waves that somebody began (there is a checkpoint) and nobody goes on with:
    preempted, not failed. `reasons`: of failures, with their number. `seconds_left`: at the pace of
    the latest start, None before there is one or where nobody works.
    """

    cells: int
    done: int
    failed: int
    running: int
    interrupted: int
    waiting: int
    workers: tuple[Running, ...]
    reasons: Mapping[str, int]
    seconds_left: float | None

    @property
    def state(self) -> str:
        """`finished`, `running` or `stopped`."""
        if self.done + self.failed == self.cells and not self.workers:
            return "finished"
        return "running" if self.workers else "stopped"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"state": self.state, **asdict(self)}


def status_of(store: Store) -> Status:
    """What the run in a store's folder is doing now. Workers whose notes nobody keeps fresh are
    dead and do not count."""
    ok, waves = store.done(), store.waves()
    workers = [_running(store, note, waves) for note in store.writers.alive()]
    busy = _cells_of(waves, [w.wave for w in workers]) - ok
    failed = store.failed() - busy
    begun = [wave for wave in waves if store.epochs_of(wave) is not None]
    left = _cells_of(waves, begun) - ok - busy - failed
    cells = len(store.planned)
    waiting = cells - len(ok) - len(busy) - len(failed) - len(left)
    return Status(
        cells, len(ok), len(failed), len(busy), len(left), waiting,
        tuple(sorted(workers, key=lambda w: (w.host, w.pid))),
        _reasons(store.rows(failed) if failed else ()),
        _seconds_left(store, waves, ok | failed) if workers else None,
    )  # fmt: skip


def _running(store: Store, note: Mapping[str, Any], waves: Waves) -> Running:
    wave = note["wave"]
    count = len(waves.get(wave, ()))
    epochs = store.epochs_of(wave) if count else None
    return Running(note["host"], note["pid"], note["started"], wave, count, epochs)


def _cells_of(waves: Waves, ids: list[str]) -> set[str]:
    return {cell for name in ids for cell in waves.get(name, ())}


def _reasons(failed: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Failures by their error, the most frequent first."""
    counts: dict[str, int] = {}
    for row in failed:
        reason = str(row.get("error"))
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _seconds_left(store: Store, waves: Waves, over: set[str]) -> float | None:
    """Work left over the pace since the latest start: FLOPs of the waves' cells."""
    started = max((_unix(launch["started"]) for launch in store.launches()), default=None)
    if started is None:
        return None
    fresh, left = 0.0, 0.0
    written = store.written()
    late = {when for when in set(written.values()) if _unix(when) >= started}
    lately = {cell for cell, when in written.items() if when in late}
    for cells, flops in zip(waves.values(), store.plan["waves"]["flops"], strict=True):
        each = (flops or 1) / len(cells)
        fresh += each * len(lately.intersection(cells))
        left += each * len(set(cells) - over)
    return left * (time.time() - started) / fresh if fresh else None


def _unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
