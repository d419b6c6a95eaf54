"""A sweep: validate, plan, train or load the donors, run every cell, write the results."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..device.allocator import free_memory, keeping_memory
from ..device.machine import cpu_name, gpu_lines
from ..device.precision import TF32
from ..errors import FulaError, not_none, printable
from ..files.atomic import folder as made
from ..files.paths import user_path
from ..models import Staged, describe_staged
from ..pipelines.sources.given import GIVEN
from ..progress import Progress
from ..store import Store
from ..store.similarity_table import missing_pairs, write_similarity
from ..study import wave_memory
from ..study.facts import DonorFacts, data_facts, described_facts, with_head
from ..study.plan import Plan, plan_here
from ..study.resources import Resources, present, resources
from ..study.spec import Spec, load_spec
from .engines import Launch, engine_of, train_apart
from .engines.launch import Manner, now
from .rows import device_name, versions_in_use

if TYPE_CHECKING:
    from .workbench import Workbench


@dataclass(frozen=True)
class Finished:
    """How a sweep ended. `cells`: planned; `failed`: without a result; `waiting`: handed over to
    workers that nobody waits for."""

    folder: Path
    cells: int
    failed: int
    seconds: float
    waiting: int = 0


def run_sweep(
    spec: Spec,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    modules: Mapping[str, Staged] | None = None,
    **manner: Any,
) -> Finished:
    """Run a spec into the folder `out`, and write its tables.

    `resume`: go on with a run: missing and failed cells only. `modules`: donors that are at hand,
    by name. Further options are those of `Manner`. Raises `FulaError` for anything that concerns
    the whole run: a bad spec, a folder that holds another run, a donor below its `min_accuracy`.
    """
    started = time.perf_counter()
    folder, progress = user_path(out), progress or Progress()
    spec = _in_reach(spec, modules or {})
    planned = plan_here(spec, {n: _facts(spec, n, m) for n, m in (modules or {}).items()})
    store, chosen = _existing(spec, folder, planned, resume), Manner(**manner)
    if store is None and chosen.retry_failed:
        raise FulaError(f"'{folder}' holds no run whose failed cells could be done once more")
    if store is not None:
        planned = _kept(store, resources(spec.engine).budget, planned.device)
    todo = set(planned.lanes.ids) if store is None else chosen.todo(store)
    _tell(progress, planned, todo)
    if todo or (planned.similarity and (store is None or missing_pairs(store))):
        run = _Run(spec, folder, planned, progress, modules or {}, chosen)
        store = run.compute(store, todo)
    return _finish(not_none(store), planned, time.perf_counter() - started)


def _facts(spec: Spec, name: str, module: Staged) -> DonorFacts:
    """Of a network that is at hand, with the head that its table names."""
    donor, facts = spec.donor(name), described_facts(name, describe_staged(module))
    return with_head(facts, donor, data_facts(donor.images)) if donor.head else facts


def _in_reach(spec: Spec, modules: Mapping[str, Staged]) -> Spec:
    """The spec, with one worker where this process alone holds networks or data and no number is
    given. Raises `FulaError` where others are asked for."""
    own = next((f"a network of this process ('{name}')" for name in modules), None)
    if own is None and spec.data.source == GIVEN:
        own = "data of this process"
    if own is None:
        return spec
    if spec.engine.kind != "local" or (spec.engine.workers or 1) > 1:
        raise FulaError(
            f"{own} cannot be given to workers; save it as a file (save_checkpoint for a network, "
            "npz or an image folder for data) and name that, or use one worker"
        )
    return spec.model_copy(update={"engine": spec.engine.model_copy(update={"workers": 1})})


def _tell(progress: Progress, planned: Plan, todo: set[str]) -> None:
    work = sum(w.flops for w in planned.waves if not todo.isdisjoint(w.cells.ids))
    if planned.lanes:
        progress.run_started(len(planned.lanes), len(planned.lanes) - len(todo), work)
    for note in planned.notes:
        progress.note(note)


@dataclass(frozen=True)
class _Run:
    """A run that has something left to compute."""

    spec: Spec
    folder: Path
    planned: Plan
    progress: Progress
    modules: Mapping[str, Staged]
    manner: Manner

    def compute(self, store: Store | None, todo: set[str]) -> Store:
        """Prepare data and donors, compare donors where asked, run the waves here or by workers."""
        from .kept import keep_surroundings
        from .similarity_pass import run_similarity
        from .waves import work_on
        from .workbench import Workbench

        found = resources(self.spec.engine)
        here = replace(self.planned, device=present(found.device))
        with keeping_memory(here.device == "cpu"):
            bench = Workbench(
                self.spec, here, self.progress, donors=self.manner.donors, modules=self.modules
            )
            store = store or _begun(self.spec, self.folder, bench, self.planned, found)
            keep_surroundings(store, bench)
            store.add_launch(_launch(here))
            if here.similarity:
                with store.writers.present(now()):
                    run_similarity(bench, store)
            kind = self.spec.engine.kind
            if todo and kind == "local" and found.workers == 1:
                work_on(bench, store, todo, self.manner)
            elif todo:
                del bench  # what its donors hold of a GPU is the workers'
                free_memory()
                launch = Launch(store, found, self.spec.engine, self.manner)
                engine_of(kind)(launch, self.progress)
        return store


def work(
    folder: str | Path,
    *,
    device: str = "auto",
    since: str | None = None,
    progress: Progress | None = None,
    **manner: Any,
) -> int:
    """Go on with the run in `folder` as one of its workers, until no wave is free and undone;
    returns how many cells have no result. Cells that failed after `since` (a time in UTC, ISO 8601;
    default: now) are not tried again. Further options are those of `Manner`.

    Raises `FulaError` where `folder` holds no run, and as `run_sweep`.
    """
    from .waves import work_on
    from .workbench import Workbench

    store, progress, chosen = Store.open(folder), progress or Progress(), Manner(**manner)
    since = since or now()
    spec = load_spec(store.spec, [("engine.device", device), ("engine.workers", 1)])
    found = resources(spec.engine)
    planned = _kept(store, found.budget, found.device)
    todo = chosen.todo(store) - store.settled(since)
    progress.run_started(len(planned.lanes), len(planned.lanes) - len(todo))
    with keeping_memory(found.device == "cpu"):
        bench = Workbench(spec, planned, progress, donors=chosen.donors)
        work_on(bench, store, todo, chosen, since)
    return len(store.missing())


def _existing(spec: Spec, folder: Path, planned: Plan, resume: bool) -> Store | None:
    """The run that the folder holds, if any: only `resume` goes on with it, and only with the same
    spec."""
    if not os.path.lexists(folder / "spec.json"):
        return None
    if not resume:
        _refuse_other(spec, folder)
        raise FulaError(
            f"'{folder}' holds a run of this spec already; add --resume to go on with it, "
            "or give another --out"
        )
    store = Store.create(folder, _identity(spec), *planned.stored())
    store.verify_stitches()
    return store


def _kept(store: Store, budget: int, device: str) -> Plan:
    """The stored plan, whose partition and precision a run keeps, on this machine's device.

    Raises `FulaError` where the device cannot do it.
    """
    kept = Plan.from_stored(store.plan, store.planned)
    if kept.device == device:
        return kept
    if kept.precision == TF32 and device == "cpu":
        raise FulaError(
            f"'{store.folder}' was planned with precision 'tf32', which a CPU does not have; go on "
            "on a GPU, or give another --out"
        )
    needs = (wave_memory.on_device(wave.memory, wave.turns, device) for wave in kept.waves)
    largest = max(needs, default=0)
    if largest > budget:
        raise FulaError(
            f"'{store.folder}' was planned on '{kept.device}' with waves of "
            f"{largest / 2**30:.1f} GiB, but '{device}' has {budget / 2**30:.1f} GiB for "
            "one; go on there, or give another --out"
        )
    return replace(kept, device=device)


def _begun(spec: Spec, folder: Path, bench: Workbench, planned: Plan, where: Resources) -> Store:
    """A new run's store. The folder becomes a run only when data and donors are there, so that a
    mistake in them leaves it free for the corrected spec, and no empty folder behind."""
    absent = [part for part in (folder, *folder.parents) if not part.exists()]
    made(folder)
    try:
        bench.prepare(
            lambda names: train_apart(spec, names, bench.donor_folder, where, bench.progress)
        )
    except BaseException:
        with suppress(OSError):  # not empty: somebody else writes there
            for part in absent:
                part.rmdir()
        raise
    return Store.create(folder, _identity(spec), *planned.stored())


def _refuse_other(spec: Spec, folder: Path) -> None:
    """`FulaError` with the difference where the folder's run has another spec."""
    store = Store.open(folder)
    Store.create(folder, _identity(spec), store.plan, {"id": list(store.cell_ids)})


def _identity(spec: Spec) -> dict[str, Any]:
    """The spec without what changes no number of it: where and how fast it runs."""
    dumped = spec.dump()
    engine = dumped.get("engine", {})
    return dumped | {"engine": {k: v for k, v in engine.items() if k not in _PLACE}}


_PLACE = ("memory", "device", "kind", "workers", "track", "slurm", "ray")


def _finish(store: Store, planned: Plan, seconds: float) -> Finished:
    store.tidy()
    if planned.lanes:
        store.write_tables()
    write_similarity(store)
    failed = len(store.failed())
    waiting = len(store.missing()) - failed
    return Finished(store.folder, len(planned.lanes), failed, seconds, waiting)


def _command(arguments: Sequence[str]) -> str:
    """As it was typed; bytes that are no UTF-8 as escapes, which a report can show."""
    program, *rest = arguments or ("",)
    return printable(" ".join([Path(program).name, *rest]))


_ROUNDING = ("FULA_BACKEND", "FULA_CONV", "FULA_NUM_THREADS", "OMP_NUM_THREADS")
"""Variables of the environment that choose how numbers are rounded."""


def _launch(planned: Plan) -> dict[str, Any]:
    """What a report says of the machine and the command."""
    return {
        "versions": versions_in_use(),
        "device": device_name(planned.device),
        "gpus": list(gpu_lines()) if planned.device != "cpu" else [],
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "precision": planned.precision,
        "executor": planned.executor,
        "environment": {name: os.environ[name] for name in _ROUNDING if name in os.environ},
        "command": _command(sys.argv),
    }
