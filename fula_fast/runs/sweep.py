"""A sweep: validate, plan, train or load the donors, run every cell, write the results."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..device.allocator import keeping_memory
from ..device.machine import cpu_name, gpu_lines
from ..engine.task import Outcome, WaveTask
from ..errors import FulaError, printable
from ..files.atomic import folder as made
from ..files.paths import user_path
from ..measures.registry import OF_LABELS
from ..models import Staged, describe_staged
from ..pipelines.sources.given import GIVEN
from ..progress import Progress
from ..store import Store
from ..store.similarity_table import missing_pairs, write_similarity
from ..study.cell import Cell
from ..study.facts import described_facts
from ..study.plan import Plan, PlannedWave, plan
from ..study.resources import resources
from ..study.spec import Spec, load_spec
from .engines import Launch, engine_of

if TYPE_CHECKING:
    from .workbench import Workbench

Executor = Callable[[WaveTask], Iterator[list[Outcome]]]
_WAIT_SECONDS = 2.0
_PACKAGES = ("torch", "torchvision", "triton", "numpy")


@dataclass(frozen=True)
class Finished:
    """How a sweep ended. `cells`: planned; `failed`: cells without a result."""

    folder: Path
    cells: int
    failed: int
    seconds: float


def run_sweep(
    spec: Spec,
    out: str | Path,
    *,
    resume: bool = False,
    fail_fast: bool = False,
    progress: Progress | None = None,
    profile: bool = False,
    donors: Path | None = None,
    modules: Mapping[str, Staged] | None = None,
    wait: bool = True,
) -> Finished:
    """Run a spec into the folder `out`, and write its tables.

    `resume`: go on with a run: missing and failed cells only. `fail_fast`: stop at the first failed
    cell. `donors`: folder of trained donors. `modules`: donors that are at hand, by name. `wait`:
    for workers of a cluster; else they go on by themselves. Raises `FulaError` for anything that
    concerns the whole run: a bad spec, a folder that holds another run, a donor below its
    `min_accuracy`.
    """
    started = time.perf_counter()
    folder, progress = user_path(out), progress or Progress()
    planned = _planned(spec, modules or {})
    store = _existing(spec, folder, planned, resume)
    if store is not None:
        planned = _kept(store, resources(spec.engine).budget, planned.device)
    todo = {cell.id for cell in planned.cells} if store is None else set(store.missing())
    work = sum(w.flops for w in planned.waves if todo.intersection(c.id for c in w.cells))
    if planned.cells:
        progress.run_started(len(planned.cells), len(planned.cells) - len(todo), work)
    for note in planned.notes:
        progress.note(note)
    if todo or (planned.similarity and (store is None or missing_pairs(store))):
        from .kept import keep_surroundings
        from .similarity_pass import run_similarity
        from .workbench import Workbench

        found = resources(spec.engine)
        several = todo and (found.workers > 1 or spec.engine.kind != "local")
        if several and modules:
            raise FulaError(
                f"a network of this process ('{next(iter(modules))}') cannot be given to workers; "
                "save it (fula_fast.save_checkpoint) and name the file, or use one worker"
            )
        if several and spec.data.source == GIVEN:
            raise FulaError(
                "data of this process cannot be given to workers; save them as files (npz, "
                "imagefolder) and name those in [data], or use one worker"
            )
        with keeping_memory(found.device == "cpu"):
            bench = Workbench(spec, planned, progress, donors=donors, modules=modules)
            store = store or _begun(spec, folder, bench)
            keep_surroundings(store, bench)
            store.add_launch(_launch(planned))
            if planned.similarity:
                with store.writers.present():
                    run_similarity(bench, store)
            if several and todo:
                del bench  # its donors' memory is the workers'
                launch = Launch(store, found, spec.engine, donors, fail_fast, profile, wait)
                engine_of(spec.engine.kind)(launch, progress)
            elif todo:
                _work(bench, store, todo, None, fail_fast, profile)
    return _finish(store, planned, time.perf_counter() - started)


def work(
    folder: str | Path,
    *,
    device: str = "auto",
    since: str | None = None,
    donors: Path | None = None,
    fail_fast: bool = False,
    profile: bool = False,
    progress: Progress | None = None,
) -> int:
    """Go on with the run in `folder` as one of its workers, until no wave is free and undone;
    returns how many cells have no result. Cells that failed after `since` (a time in UTC, ISO 8601;
    default: now) are not tried again.

    Raises `FulaError` where `folder` holds no run, and as `run_sweep`.
    """
    from .workbench import Workbench

    store, progress = Store.open(folder), progress or Progress()
    since = since or datetime.now(UTC).isoformat()
    spec = load_spec(store.spec, [("engine.device", device), ("engine.workers", 1)])
    found = resources(spec.engine)
    planned = _kept(store, found.budget, found.device)
    todo = set(store.missing()) - store.settled(since)
    progress.run_started(len(planned.cells), len(planned.cells) - len(todo))
    with keeping_memory(found.device == "cpu"):
        bench = Workbench(spec, planned, progress, donors=donors)
        _work(bench, store, todo, since, fail_fast, profile)
    return len(store.missing())


def _work(
    bench: Workbench,
    store: Store,
    todo: set[str],
    since: str | None,
    fail_fast: bool,
    profile: bool,
) -> None:
    """Run the waves with unfinished cells that nobody else works on."""
    with store.writers.present():
        for wave in _free_waves(bench.plan, store, todo, since, bench.progress):
            _run_wave(wave, bench, store, todo, fail_fast, profile)


def _planned(spec: Spec, modules: Mapping[str, Staged]) -> Plan:
    found = resources(spec.engine)
    return plan(
        spec,
        device=found.device,
        precision=found.precision,
        mode=spec.engine.mode,
        budget=found.budget,
        fused=found.fused,
        workers=found.workers,
        donors={name: described_facts(name, describe_staged(m)) for name, m in modules.items()},
    )


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
    store = Store.create(folder, _identity(spec), planned.to_json())
    store.verify_stitches()
    return store


def _kept(store: Store, budget: int, device: str) -> Plan:
    """The stored plan, whose partition and precision a run keeps, on this machine's device.

    Raises `FulaError` where the device cannot do it.
    """
    kept = Plan.from_json(store.plan)
    if kept.device == device:
        return kept
    if kept.precision == "tf32" and device == "cpu":
        raise FulaError(
            f"'{store.folder}' was planned with precision 'tf32', which a CPU does not have; go on "
            "on a GPU, or give another --out"
        )
    largest = max((wave.memory for wave in kept.waves), default=0)
    if largest > budget:
        raise FulaError(
            f"'{store.folder}' was planned on '{kept.device}' with waves of "
            f"{largest / 2**30:.1f} GiB, but '{device}' has {budget / 2**30:.1f} GiB for "
            "one; go on there, or give another --out"
        )
    return replace(kept, device=device)


def _free_waves(
    planned: Plan, store: Store, todo: set[str], since: str | None, progress: Progress
) -> Iterator[PlannedWave]:
    """The waves with unfinished cells, those that another process works on last: it is waited for,
    and what it has finished is taken out of `todo`. `since`: so are failures from then on."""
    waiting, told = list(planned.waves), False
    while waiting:
        taken = {note["wave"]: note for note in store.writers.others()}
        if taken and not told and not since:
            note, told = next(iter(taken.values())), True
            progress.note(
                f"process {note['pid']} on {note['host']} works in '{store.folder}' too; its waves "
                "are left to it"
            )
        if taken or since:
            todo -= store.settled(since)
        waiting = [wave for wave in waiting if todo.intersection(cell.id for cell in wave.cells)]
        free = next((wave for wave in waiting if wave.id not in taken), None)
        if free is not None:
            if store.writers.claim(free.id):
                waiting.remove(free)
                if since:  # finished meanwhile?
                    todo -= store.settled(since)
                if todo.intersection(cell.id for cell in free.cells):
                    yield free
        elif waiting:
            time.sleep(_WAIT_SECONDS)


def _begun(spec: Spec, folder: Path, bench: Workbench) -> Store:
    """A new run's store. The folder becomes a run only when data and donors are there, so that a
    mistake in them leaves it free for the corrected spec, and no empty folder behind."""
    absent = [part for part in (folder, *folder.parents) if not part.exists()]
    made(folder)
    try:
        bench.prepare()
    except BaseException:
        with suppress(OSError):  # not empty: somebody else writes there
            for part in absent:
                part.rmdir()
        raise
    return Store.create(folder, _identity(spec), bench.plan.to_json())


def _refuse_other(spec: Spec, folder: Path) -> None:
    """`FulaError` with the difference where the folder's run has another spec."""
    store = Store.open(folder)
    Store.create(folder, _identity(spec), store.plan)


def _identity(spec: Spec) -> dict[str, Any]:
    """The spec without what changes no number of it: where and how fast it runs."""
    dumped = spec.dump()
    engine = dumped.get("engine", {})
    return dumped | {"engine": {k: v for k, v in engine.items() if k not in _PLACE}}


_PLACE = ("memory", "device", "kind", "workers", "slurm", "ray")


def _run_wave(
    wave: PlannedWave,
    bench: Workbench,
    store: Store,
    todo: set[str],
    fail_fast: bool,
    profile: bool,
) -> None:
    task = bench.task(wave)
    hashes = _hashes(bench, wave)
    store.check_donors({wave.key.front: hashes["front_hash"], wave.key.end: hashes["end_hash"]})
    common, unknown = _common(bench, wave, hashes), _unknown(bench)
    for outcomes in _executor(bench.plan, wave, store, todo, profile)(task):
        axes = bench.spec.grid.axes
        rows = [
            common
            | _robust_donors(bench, wave, outcome.cell)
            | _row(outcome)
            | unknown
            | _axis_columns(outcome, axes)
            for outcome in outcomes
        ]
        good = [o for o in outcomes if not o.error]
        stitches, statistics = (
            {o.cell.id: getattr(o, part) for o in good} for part in ("tensors", "statistics")
        )
        store.write(wave.id, rows, stitches, statistics)
        for row in rows:
            bench.progress.cell_done(row)
        if fail_fast and (failed := [o for o in outcomes if o.error]):
            raise FulaError(f"cell {failed[0].cell.id} failed: {failed[0].error} (--fail-fast)")


def _executor(
    planned: Plan, wave: PlannedWave, store: Store, todo: set[str], profile: bool
) -> Executor:
    """Runs the wave's unfinished cells, alone or as lanes."""
    if planned.executor == "solo":
        from ..engine import solo

        return lambda task: solo.run_wave(_only(task, todo))
    from .. import engine

    return lambda task: engine.run_wave(_only(task, todo), store, wave.id, profile=profile)


def _only(task: WaveTask, todo: set[str]) -> WaveTask:
    return replace(task, cells=tuple(cell for cell in task.cells if cell.id in todo))


def _hashes(bench: Workbench, wave: PlannedWave) -> dict[str, str]:
    names = {"front": wave.key.front, "end": wave.key.end}
    return {f"{r}_hash": bench.donor(n, wave.key.hook).content_hash for r, n in names.items()}


def _common(bench: Workbench, wave: PlannedWave, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Columns that all cells of a wave share."""
    accuracies = {
        f"{role}_accuracy": bench.donor(name, wave.key.hook).metrics.test_accuracy
        for role, name in (("front", wave.key.front), ("end", wave.key.end))
    }
    versions = {f"version_{name}": v for name, v in _versions().items()}
    place = {"device": device_name(bench.plan.device), "precision": bench.plan.precision}
    sites = {
        f"{role}_sites": bench.donor(name, wave.key.hook).staged.num_sites
        for role, name in (("front", wave.key.front), ("end", wave.key.end))
    }
    return {**accuracies, **sites, **hashes, **place, **versions}


def _unknown(bench: Workbench) -> dict[str, None]:
    """The columns that stay empty where the data have no labels."""
    return {} if bench.source(bench.spec.data).labelled else dict.fromkeys(OF_LABELS)


def _robust_donors(bench: Workbench, wave: PlannedWave, cell: Cell) -> dict[str, float]:
    """Columns of the two donors under the cell's own attack; cells of a wave may differ in it."""
    return {
        f"{role}_robust_accuracy": found
        for role, name in (("front", wave.key.front), ("end", wave.key.end))
        if (found := bench.robust_accuracy(name, wave, cell.protocol)) is not None
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    cell, rule = outcome.cell, outcome.cell.protocol
    described = {
        "cell": cell.id, "front": cell.front, "end": cell.end, "front_site": cell.front_site,
        "end_site": cell.end_site, "method": cell.method, "protocol": rule.preset,
        "alpha": cell.alpha, "shortcut": cell.shortcut_label, "subset": cell.subset,
        "seed": cell.seed, "data_seed": cell.data_seed, "weighting": cell.weighting,
        "bn": rule.bn, "epochs": rule.epochs,
        "status": "failed" if outcome.error else "ok", "error": outcome.error,
    }  # fmt: skip
    return described | outcome.metrics


def _axis_columns(outcome: Outcome, axes: Mapping[str, Any]) -> dict[str, Any]:
    """One column for every protocol option that the grid varies."""
    return outcome.cell.protocol.model_dump(mode="json", include=set(axes))


def _finish(store: Store, planned: Plan, seconds: float) -> Finished:
    store.tidy()
    if planned.cells:
        store.write_tables()
    write_similarity(store)
    return Finished(store.folder, len(planned.cells), len(store.missing()), seconds)


def device_name(device: str) -> str:
    """The processor's or the GPU's own name."""
    if device == "cpu":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def _versions() -> dict[str, str]:
    found = {"fula_fast": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # triton has no wheel for some systems
            found[name] = "absent"
    return found


def _command(arguments: Sequence[str]) -> str:
    """As it was typed; bytes that are no UTF-8 as escapes, which a report can show."""
    program, *rest = arguments or ("",)
    return printable(" ".join([Path(program).name, *rest]))


def _launch(planned: Plan) -> dict[str, Any]:
    """What a report says of the machine and the command."""
    return {
        "versions": _versions(),
        "device": device_name(planned.device),
        "gpus": list(gpu_lines()) if planned.device != "cpu" else [],
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "precision": planned.precision,
        "executor": planned.executor,
        "command": _command(sys.argv),
    }
