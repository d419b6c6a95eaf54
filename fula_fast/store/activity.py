"""What a run is doing, told from its folder alone: from any machine, while others write there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ..study.schedule import schedule
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
    the latest start, where waves weigh as much as finished ones of their kind took; before it has
    finished any, by those of earlier starts. None where nothing is known or nobody works.
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
    begun = [wave for wave in waves if store.checkpoints.epochs_of(wave) is not None]
    left = _cells_of(waves, begun) - ok - busy - failed
    cells = len(store.planned)
    waiting = cells - len(ok) - len(busy) - len(failed) - len(left)
    return Status(
        cells, len(ok), len(failed), len(busy), len(left), waiting,
        tuple(sorted(workers, key=lambda w: (w.host, w.pid))),
        _reasons(store.rows(failed) if failed else ()),
        _seconds_left(store, waves, ok | failed, len(workers)) if workers else None,
    )  # fmt: skip


def _running(store: Store, note: Mapping[str, Any], waves: Waves) -> Running:
    wave = note["wave"]
    count = len(waves.get(wave, ()))
    epochs = store.checkpoints.epochs_of(wave) if count else None
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


def _seconds_left(store: Store, waves: Waves, over: set[str], workers: int) -> float | None:
    """Until the last wave has ended."""
    started = max((launch["started"] for launch in store.launches()), default=None)
    if started is None:
        return None
    known, lately = store.wave_seconds(), store.written_since(started)
    costs = known or [flops or 1 for flops in store.plan["waves"]["flops"]]
    each = [(cost / len(cells), cells) for cost, cells in zip(costs, waves.values(), strict=True)]
    left = [cost * (len(cells) - _count(cells, over)) for cost, cells in each]
    if fresh := sum(cost * _count(cells, lately) for cost, cells in each):
        return sum(left) * (time.time() - _unix(started)) / fresh
    return schedule(left, workers).makespan if known else None


def _count(cells: Sequence[str], among: set[str]) -> int:
    return sum(map(among.__contains__, cells))


def _unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
