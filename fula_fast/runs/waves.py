"""The waves of a run, one after another, by one of its workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from functools import partial

from ..engine.task import Outcome, WaveTask
from ..errors import FulaError
from ..progress import Progress
from ..store import Store
from ..study.plan import Plan, PlannedWave
from .engines.launch import Manner, now
from .rows import hashes_of, rows_of
from .wave_logs import logged
from .workbench import Workbench

Executor = Callable[[WaveTask], Iterator[list[Outcome]]]
_WAIT_SECONDS = 2.0


def work_on(
    bench: Workbench, store: Store, todo: set[str], manner: Manner, since: str | None = None
) -> None:
    """Run the waves with cells in `todo` that nobody else works on. `since`: cells that failed from
    then on are done with. Raises `FulaError` where the run was cancelled after it, or after now."""
    wanted = since or now()
    with store.writers.present(wanted):
        settled, joined = partial(store.settled, since), since is not None
        waves = longest_first(bench.plan.waves, store) if joined else bench.plan.waves
        for wave in free_waves(waves, store, todo, settled, bench.progress, joined):
            store.writers.check_wanted(wanted)
            _run_wave(wave, bench, store, todo, manner)


def longest_first(waves: Sequence[PlannedWave], store: Store) -> Sequence[PlannedWave]:
    """Waves by what finished ones of their kind took, so that workers that take one after another
    end together; as they are planned, by FLOPs, before one is finished."""
    seconds = store.wave_seconds()
    if seconds is None:
        return waves
    by_id = dict(zip(store.plan["waves"]["id"], seconds, strict=True))
    return sorted(waves, key=lambda wave: -by_id[wave.id])


def free_waves(
    waves: Sequence[PlannedWave],
    store: Store,
    todo: set[str],
    settled: Callable[[], set[str]],
    progress: Progress,
    joined: bool,
) -> Iterator[PlannedWave]:
    """The waves with cells in `todo`, those that another process works on in the store's folder
    last: it is waited for, and what is `settled` meanwhile is taken out of `todo`. `joined`: this
    is one of several workers, which expects others there."""
    waiting, told = list(waves), False
    while waiting:
        taken = {note["wave"]: note for note in store.writers.others()}
        if taken and not told and not joined:
            note, told = next(iter(taken.values())), True
            progress.note(
                f"process {note['pid']} on {note['host']} works in '{store.folder}' too; its waves "
                "are left to it"
            )
        if taken or joined:
            todo -= settled()
        free = _first_free(waiting, taken, todo)
        if free is not None:
            if store.writers.claim(free.id):
                waiting.remove(free)
                if joined:  # finished meanwhile?
                    todo -= settled()
                if not todo.isdisjoint(free.cells.ids):
                    yield free
        elif waiting:
            time.sleep(_WAIT_SECONDS)


def _first_free(
    waiting: list[PlannedWave], taken: Container[str], todo: set[str]
) -> PlannedWave | None:
    """The first wave with cells in `todo` that is not taken. Waves before it without any are no
    longer waited for."""
    kept: list[PlannedWave] = []
    for place, wave in enumerate(waiting):
        if not todo.isdisjoint(wave.cells.ids):
            kept.append(wave)
            if wave.id not in taken:
                waiting[: place + 1] = kept
                return wave
    waiting[:] = kept
    return None


def _run_wave(
    wave: PlannedWave, bench: Workbench, store: Store, todo: set[str], manner: Manner
) -> None:
    done = sum(cell not in todo for cell in wave.cells.ids)
    with logged(bench.progress, store, wave.id, len(wave.cells), done) as progress:
        task, hashes = replace(bench.task(wave), progress=progress), hashes_of(bench, wave)
        store.check_donors({wave.key.front: hashes["front_hash"], wave.key.end: hashes["end_hash"]})
        for outcomes in _executor(bench.plan, wave, store, todo, manner.profile)(task):
            rows = list(rows_of(bench, wave, outcomes))
            good = [o for o in outcomes if not o.error]
            stitches, statistics = (
                {o.cell.id: getattr(o, part) for o in good} for part in ("tensors", "statistics")
            )
            store.write(wave.id, rows, stitches, statistics)
            for row in rows:
                progress.cell_done(row)
            if manner.fail_fast and (failed := [o for o in outcomes if o.error]):
                cell, reason = failed[0].cell.id, failed[0].error
                raise FulaError(f"cell {cell} failed: {reason} (--fail-fast)")


def _executor(
    planned: Plan, wave: PlannedWave, store: Store, todo: set[str], profile: bool
) -> Executor:
    """Runs the wave's unfinished cells, alone or as lanes."""
    if planned.executor == "solo":
        from ..engine import solo

        return lambda task: solo.run_wave(_only(task, todo))
    from .. import engine

    folder = store.folder / "profile" if profile else None
    return lambda task: engine.run_wave(
        _only(task, todo), store.checkpoints, wave.id, profile=folder
    )


def _only(task: WaveTask, todo: set[str]) -> WaveTask:
    return replace(task, cells=tuple(cell for cell in task.cells if cell.id in todo))
