"""Running an experiment: missing donors, sweeps, the driver's tasks, verdicts, report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import FulaError
from ..files import sealed
from ..files.atomic import folder as made
from ..files.atomic import replacing
from ..progress import Progress
from ..report.after_sweep import sweep_with_report
from ..store import Store
from ..store.shards import clean_rows
from ..store.tables import write_tables
from ..study.resources import resources
from ..study.spec import EngineSpec
from .claims import Verdict, counted, verdicts
from .evidence import Evidence, Row, gathered
from .experiment import Experiment

if TYPE_CHECKING:
    from .lab import Figure, Lab, Table, Task


@dataclass(frozen=True)
class Ended:
    """How an experiment ended. `failed`: cells and tasks without a result."""

    experiment: Experiment
    folder: Path
    report: Path
    verdicts: tuple[Verdict, ...]
    failed: int
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{v.outcome:>13}  {v.shown:<28} {v.figure}: {v.says}"
            + (f" [{v.reason}]" if v.reason else "")
            for v in self.verdicts
        ]
        papers = _counted("the paper's claims", [v for v in self.verdicts if not v.ours])
        ours = _counted("our own checks", [v for v in self.verdicts if v.ours])
        failed = [f"{self.failed} failed"] if self.failed else []
        counts = ", ".join([*papers, *ours, *failed])
        name = self.experiment.name
        return "\n".join([*lines, f"{name}: {counts}; {self.seconds:.0f} s; report: {self.report}"])


def _counted(what: str, found: list[Verdict]) -> list[str]:
    """`of the paper's claims 3 of 4 hold (1 not testable)`, where there are any."""
    if not found:
        return []
    held, tested = counted(found)
    left = f" ({len(found) - tested} not testable)" if tested < len(found) else ""
    return [f"of {what} {held} of {tested} hold{left}"]


def run(
    experiment: Experiment,
    out: Path,
    *,
    progress: Progress | None = None,
    donors: Path | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Ended:
    """Run what is missing of an experiment below the folder `out`, and write its report.

    Finished cells and tasks of an earlier run are kept. `engine`: as of a spec's `[engine]`; a
    driver's tasks run here, one after another, whatever runs the sweeps.
    Raises `FulaError` where data is missing, and for a folder that holds another run.
    """
    check_data(experiment)
    started, progress = time.perf_counter(), progress or Progress()
    for note in experiment.notes:
        progress.note(note)
    folder = out / experiment.recipe.run_name
    by_part = _sweeps(experiment, folder, progress, donors, engine or {})
    shown = Shown()
    if experiment.recipe.driver:
        rows, shown = _driven(experiment, folder, progress, donors, engine or {})
        by_part[driver_part(experiment)] = rows
    failures = _failures(by_part)
    table = gathered(by_part)
    found = verdicts(experiment.recipe, table)
    from .experiment_page import write_page

    mine = out / experiment.name
    _write_tables(mine, table, found)
    report = write_page(experiment, mine, folder, table, found, shown, failures)
    seconds = time.perf_counter() - started
    return Ended(experiment, mine, report, found, len(failures), seconds)


def check_data(experiment: Experiment) -> None:
    """Raises `FulaError` where data of the experiment is missing."""
    if experiment.missing:
        raise FulaError(
            f"'{experiment.name}' at scale {experiment.scale} needs data that is not there: "
            f"{'; '.join(experiment.missing)}. Point --data at the folder that holds it"
        )


def _failures(by_part: Mapping[str, list[Row]]) -> list[str]:
    """A line for every cell or task without a result."""
    return [
        f"{part}, {row.get('cell') or row['task']}: {row.get('error')}"
        for part, rows in by_part.items()
        for row in rows
        if row.get("status") == "failed"
    ]


def driver_part(experiment: Experiment) -> str:
    """The name under which a driver's rows stand among the parts; `cka` for Fig. 6."""
    return {"penultimate": "cka"}.get(experiment.recipe.driver, experiment.recipe.driver)


def _sweeps(
    experiment: Experiment,
    folder: Path,
    progress: Progress,
    donors: Path | None,
    engine: Mapping[str, Any],
) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for sweep in experiment.sweeps:
        place = folder / sweep.name
        spec = sweep.spec.model_copy(
            update={
                "engine": EngineSpec.model_validate(sweep.spec.engine.model_dump() | dict(engine))
            }
        )
        resume = (place / "spec.json").exists()
        sweep_with_report(spec, place, resume=resume, progress=progress, donors=donors)
        rows[sweep.name] = Store.open(place).results()
    return rows


def driver_of(experiment: Experiment) -> ModuleType:
    """The module of an experiment's driver."""
    return import_module(f".drivers.{experiment.recipe.driver}", __package__)


def lab_of(
    experiment: Experiment,
    folder: Path,
    progress: Progress | None = None,
    donors: Path | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Lab:
    """What the driver's tasks work with, in the experiment's `folder`: they run here, whatever
    `engine` says of workers."""
    from .lab import Lab

    here = {key: value for key, value in (engine or {}).items() if key not in ("kind", "workers")}
    return Lab(experiment, folder, resources(EngineSpec(**here)), progress or Progress(), donors)


def _driven(
    experiment: Experiment,
    folder: Path,
    progress: Progress,
    donors: Path | None,
    engine: Mapping[str, Any],
) -> tuple[list[Row], Shown]:
    """Rows of the driver's tasks, those done before read, and what the page shows of them."""
    driver, lab = driver_of(experiment), lab_of(experiment, folder, progress, donors, engine)
    tasks, ledger = driver.tasks(experiment), Ledger(folder / "driver", identity(experiment))
    progress.run_started(len(tasks), sum(ledger.has(task.key) for task in tasks))
    rows: list[Row] = []
    for task in tasks:
        done = ledger.has(task.key)
        make = partial(_named, driver.run, task, lab)
        found = ledger.kept(task.key, make) if task.kept else clean_rows(make())
        if not done:
            errors = [row.get("error") for row in found if row.get("status") == "failed"]
            told = {"status": "failed", "error": errors[0]} if errors else {"status": "ok"}
            progress.cell_done({"cell": task.key, **told})
        rows += found
    found = (getattr(driver, name, lambda lab, rows: [])(lab, rows) for name in _SHOWN)
    return rows, Shown(*map(tuple, found))


_SHOWN = ("pictures", "tables")


@dataclass(frozen=True)
class Shown:
    """What a driver has for the page."""

    pictures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


def _named(work: Callable[..., list[Row]], task: Task, lab: Lab) -> list[Row]:
    return [row | {"task": task.key} for row in work(task, lab)]


def identity(experiment: Experiment) -> dict[str, Any]:
    """What decides the rows of an experiment's driver."""
    specs = [sweep.spec.study() for sweep in experiment.sweeps]
    donors = {name: _placeless(table) for name, table in experiment.donors.items()}
    data = {n: {"table": _placeless(c.table), **c.limits} for n, c in experiment.data.items()}
    return {"options": dict(experiment.options), "specs": specs, "donors": donors, "data": data}


def _placeless(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: _placeless(v) if isinstance(v, Mapping) else v
        for k, v in table.items()
        if k != "data_dir"
    }


class Ledger:
    """Finished tasks of a driver, one file each; refuses a folder with other settings.

    Tasks that failed are not kept: the next run tries them again, as sweeps do.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))
        stored = self._read("settings")
        if stored not in (None, self.identity):
            raise FulaError(
                f"'{folder}' holds tasks with other settings; give another --out, or remove it"
            )

    def has(self, key: str) -> bool:
        """Whether the task is finished."""
        return (self.folder / f"{key}.json").exists()

    def kept(self, key: str, make: Callable[[], list[Row]]) -> list[Row]:
        """The rows under `key`, made and written where they are not there."""
        found = self._read(key)
        if found is None:
            found = clean_rows(make())
            if not any(row.get("status") == "failed" for row in found):
                self._write("settings", self.identity)
                self._write(key, found)
        return found

    def _write(self, key: str, content: Any) -> None:
        named = {"key": key, "content": content}
        sealed.write_json(self.folder / f"{key}.json", sealed.LEDGER, named)

    def _read(self, key: str) -> Any:
        path = self.folder / f"{key}.json"
        if not os.path.lexists(path):
            return None
        found = sealed.read_json(path, sealed.LEDGER, dict[str, Any])
        if found.get("key") != key:
            raise sealed.Damaged(path, sealed.LEDGER, f"it holds '{found.get('key')}'")
        return found["content"]


def _write_tables(folder: Path, table: Evidence, found: tuple[Verdict, ...]) -> None:
    made(folder)
    write_tables(folder, [{k: v for k, v in row.items() if v is not None} for row in table.rows])
    with replacing(folder / "claims.json") as temporary:
        temporary.write_text(json.dumps([vars(v) for v in found], indent=1) + "\n", "utf-8")
