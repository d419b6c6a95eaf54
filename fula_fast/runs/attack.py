"""Attack every finished cell of a run: `attack_run("runs/depth", "pgd-20")`.

The stitched models are put together again from what the run stored, and attacked as a sweep with
`robust = …` attacks them: images of many cells packed into the same batches. Rows are the run's own
with the attack's columns in them. They are kept as they are finished (in the run's folder, under
`attacks/NAME`); the same call goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..attacks import RobustResult, save_examples
from ..attacks.columns import attacked_images
from ..attacks.names import DEFAULT, prepared
from ..attacks.options import TEXT_NAMES, AttackOptions, own_names
from ..device.mode import CAPTURED
from ..engine.attacked import attacked_lanes
from ..engine.restore import restored
from ..errors import FulaError, check_name, not_none
from ..files.atomic import folder as made
from ..files.paths import user_path
from ..models import Staged
from ..progress import Progress
from ..store import Store
from ..store.differences import describe_differences
from ..store.tables import write_tables
from ..study.cell import Cell
from ..study.plan import Plan, PlannedWave
from .kept import settled_spec
from .waves import free_waves
from .workbench import Workbench


@dataclass(frozen=True)
class RobustRun:
    """What was done: `rows` of all attacked cells, in the plan's order, and their `table` (CSV)."""

    rows: list[dict[str, Any]]
    table: Path

    def __str__(self) -> str:
        values = [row["robust_accuracy"] for row in self.rows]
        spread = f"robust accuracy {min(values):.4f} to {max(values):.4f}; " if values else ""
        most = max((row["robust_zero_gradient_images"] for row in self.rows), default=0)
        vanished = f"up to {most} images of a cell have a zero gradient; " if most else ""
        return f"{len(self.rows)} cells attacked; {spread}{vanished}table: {self.table}"


def attack_run(
    folder: str | Path,
    attack: str = DEFAULT,
    *,
    name: str | None = None,
    limit: int | None = None,
    examples: str | Path | None = None,
    device: str = "cpu",
    donors: Path | None = None,
    modules: Mapping[str, Staged] | None = None,
    progress: Progress | None = None,
    launch: Callable[[Store], None] | None = None,
    since: str | None = None,
    **options: Any,
) -> RobustRun:
    """Attack the stitched models of a run's finished cells, and write `attack-NAME.csv` and
    `.parquet` into its folder.

    `name`: of the table, by default the attack's. `limit`: only so many test images; by default
    what the run's spec says. `examples`: folder for the adversarial images, one npz a cell (see
    `save_examples`). `donors`, `modules`: as of a sweep. `options`: of `robust_evaluate`, those
    that have a name and a value (`attacks.options.TEXT_NAMES`); norm, eps and step are each cell's
    own where not given. `launch`: has workers attack what is left, given the store of finished
    rows; `since`: this is one of them, started for a launch at that time (UTC, ISO 8601), which
    takes what nobody else works on and writes no table.

    Raises `FulaError` for an unknown attack or option, before anything is loaded; for a folder
    without a run, for an earlier table of that name made with other settings, and where donors are
    not the run's.
    """
    options = own_names(options)
    recipe, chosen = prepared(attack, options, TEXT_NAMES)
    _check_mode(chosen, device)
    attack = recipe.name
    store, progress = Store.open(folder), progress or Progress()
    ready = store.done()
    if not ready:
        raise FulaError(
            f"'{folder}' has no finished cell to attack; finish its sweep with --resume"
        )
    spec = settled_spec(store)
    planned = replace(Plan.from_stored(store.plan, store.planned), device=device)
    limit = spec.evaluation.robust_images if limit is None else limit
    settings = {"attack": attack, "images": limit, "options": options, "models": "full precision"}
    results = _Results(store, name or attack, json.loads(json.dumps(settings)))
    kept = None if examples is None else made(user_path(examples))
    todo = ready - results.done(kept)
    progress.run_started(len(ready), len(ready) - len(todo))
    if launch is not None and todo:
        launch(results.opened())
        return results.finish()
    bench = Workbench(spec, planned, progress, donors=donors, modules=modules)
    with results.waves(planned, todo, kept, since, progress) as waves:
        for wave in waves:
            cells = [cell for cell in wave.cells if cell.id in todo]
            for group, given in _groups(cells, options, planned.precision):
                attacks = _Attacks(bench, wave, store, attack, given, limit)
                for rows, found in attacks.rows(group):
                    _save(kept, found)
                    results.write(wave, rows)
                    for row in rows:
                        progress.cell_done(row)
    return results.finish(tables=since is None)


def _check_mode(options: AttackOptions, device: str) -> None:
    """`FulaError` for a mode that a run's cells cannot be attacked in."""
    if options.compiles:
        raise FulaError(
            "a run's cells are attacked in one wave, which is captured on CUDA and not compiled; "
            "leave compile out, and mode = 'auto'"
        )
    if options.mode == CAPTURED and not device.startswith("cuda"):
        raise FulaError("mode = 'captured' needs a CUDA device; use mode = 'auto'")


def _groups(
    cells: Sequence[Cell], options: Mapping[str, Any], precision: str
) -> Iterator[tuple[list[Cell], dict]]:
    """Cells that are attacked with the same options."""
    together: dict[str, tuple[list[Cell], dict]] = {}
    for cell in cells:
        own = cell.protocol.robust_options(precision) | dict(options)
        together.setdefault(repr(sorted(own.items())), ([], own))[0].append(cell)
    yield from together.values()


@dataclass(frozen=True)
class _Attacks:
    """The attack on cells of one wave of the run."""

    bench: Workbench
    wave: PlannedWave
    store: Store
    attack: str
    options: Mapping[str, Any]
    limit: int | None

    def rows(
        self, cells: Sequence[Cell]
    ) -> Iterator[tuple[list[dict[str, Any]], list[tuple[str, RobustResult, Tensor]]]]:
        """Rows of the cells, and (cell id, result, labels) of each, a few cells at a time."""
        task = replace(self.bench.task(self.wave, training=False, plain=True), cells=tuple(cells))
        shared = self._shared()
        images, labels = attacked_images(next(iter(task.evaluations.values()))(), self.limit)
        known = {row["cell"]: row for row in self.store.rows({cell.id for cell in cells})}
        stitches = {cell.id: self.store.stitch(cell.id) for cell in cells}
        lanes = restored(
            task, stitches, {cell.id: self.store.statistics(cell.id) for cell in cells}
        )
        given = (images, labels, self.attack, self.options)
        donors = task.front, task.end
        for part in attacked_lanes(lanes, donors, range(len(lanes.lanes)), *given):
            ids = [lanes.lanes[n].cell.id for n, *_ in part]
            rows = [known[i] | shared | part[k][1] for k, i in enumerate(ids)]
            yield rows, [(i, part[k][2], labels) for k, i in enumerate(ids)]

    def _shared(self) -> dict[str, Any]:
        """Robust accuracies of the two donors, which must be those of the run."""
        key, roles = self.wave.key, {"front": self.wave.key.front, "end": self.wave.key.end}
        hashes = {n: self.bench.donor(n, key.hook).content_hash for n in roles.values()}
        self.store.check_donors(hashes)
        given = (self.wave, self.attack, self.options, self.limit)
        return {
            f"{role}_robust_accuracy": self.bench.robust_under(name, *given)
            for role, name in roles.items()
        }


def _save(folder: Path | None, found: Sequence[tuple[str, RobustResult, Tensor]]) -> None:
    if folder is not None:
        for cell, result, labels in found:
            save_examples(_file(folder, cell), result, np.asarray(labels.cpu()))


def _file(folder: Path, cell: str) -> Path:
    return folder / f"{cell}.npz"


class _Results:
    """The finished rows of one attack on a run: a store of its own within the run's folder."""

    def __init__(self, run: Store, name: str, settings: dict[str, Any]) -> None:
        self.run, self.name, self.settings = run, name, settings
        self.folder = run.folder / "attacks" / check_name(name, "--name")
        known = os.path.lexists(self.folder / "spec.json")
        self.store = Store.open(self.folder) if known else None
        if self.store is not None and self.store.spec != settings:
            raise FulaError(
                f"'{run.folder}' has an attack '{name}' with other settings "
                f"({describe_differences(self.store.spec, settings)}); give this one another name"
            )

    def done(self, examples: Path | None) -> set[str]:
        """Cells that are done, with their adversarial images where they are wanted."""
        done = set() if self.store is None else self.store.done()
        return {cell for cell in done if examples is None or _file(examples, cell).exists()}

    def write(self, wave: PlannedWave, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep finished rows."""
        self.opened().write(wave.id, rows)

    def opened(self) -> Store:
        """The store of finished rows, made for the first."""
        if self.store is None:
            cells = {"id": list(self.run.cell_ids)}
            self.store = Store.create(self.folder, self.settings, {}, cells)
        return self.store

    @contextmanager
    def waves(
        self,
        planned: Plan,
        todo: set[str],
        examples: Path | None,
        since: str | None,
        progress: Progress,
    ) -> Iterator[Iterable[PlannedWave]]:
        """The waves to attack: all, or, for a worker, those that no other one has taken."""
        if since is None:
            yield planned.waves
            return
        store, settled = self.opened(), partial(self.done, examples)
        with store.writers.present(since):
            yield free_waves(planned.waves, store, todo, settled, progress, joined=True)

    def finish(self, tables: bool = True) -> RobustRun:
        """Write the tables."""
        store, stem = not_none(self.store), f"attack-{self.name}"
        rows, table = store.rows(), self.run.folder / f"{stem}.csv"
        if tables:
            store.tidy()
            write_tables(self.run.folder, rows, stem)
        return RobustRun(rows, table)
