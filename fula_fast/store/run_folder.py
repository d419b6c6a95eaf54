"""`Store`: one run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict
from typing_extensions import TypedDict

from ..errors import FulaError
from ..files import sealed
from ..files.atomic import folder as made
from ..files.atomic import remove, remove_stale
from ..files.paths import user_path
from ..files.sealed import LAUNCH, PLAN_CELLS, RUN_PLAN, RUN_SPEC, STITCHES
from ..files.sealed_rows import Seal, SealedRows, write_rows
from ..study.schedule import corrected
from .checkpoints import Checkpoints
from .cross_layer import with_self_accuracy, with_self_accuracy_columns
from .differences import describe_differences
from .finished import FinishedCells, warn
from .shards import (
    STATUSES,
    Moment,
    Shard,
    check_there,
    clean_rows,
    folder_of,
    next_stem,
    write_shard,
)
from .tables import batches, collecting_nothing, save_tables, table_of
from .trained_tensors import TrainedTensors
from .writers import Writers

if TYPE_CHECKING:
    import pyarrow
    from torch import Tensor


_CELLS = "plan.parquet"
_STATISTICS = "statistics/"
"""Before a cell's id, in the names of the statistics beside its stitch."""


class _Plan(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    seal: Seal


class _Spec(TypedDict):
    spec: dict[str, Any]
    plan: str


class _Launch(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    started: Moment


class Store:
    """A run's folder: its spec and plan, finished cells, stitches, wave checkpoints and tables.

    Make one with `Store.create` (to work) or `Store.open` (to read; writes nothing by itself).
    All writes are atomic and raise `FulaError` where the folder cannot be written. `planned`: the
    columns of the planned cells, wave by wave.
    """

    def __init__(self, folder: Path, spec: dict[str, Any], plan: dict[str, Any]) -> None:
        self.folder = folder
        self.spec = spec
        self.plan = plan
        self.id = sealed.digest_of([spec, plan])  # stands in every file that is of this run alone
        self.planned = SealedRows(folder / _CELLS, PLAN_CELLS, plan["seal"])
        self._finished = FinishedCells(folder, self.id)
        self._trained = TrainedTensors(self._finished)
        self._donors: dict[str, str] = {}  # checked already
        self.checkpoints = Checkpoints(folder, self.id)
        self.writers = Writers(folder / "writers")

    @classmethod
    def create(
        cls,
        path: str | Path,
        spec: dict[str, Any],
        plan: Mapping[str, Any],
        cells: Mapping[str, Any],
    ) -> Store:
        """Start a run in `path`, or go on with the same run.

        `spec` and `plan` are JSON-able. `cells`: columns of the planned cells, their `id` and what
        else a plan says of them; `position` is their order (default: as they stand). A folder that
        holds the same spec keeps its stored plan (partition, precision, backend). Raises
        `FulaError` if the folder holds another spec, or other cells for this spec.
        """
        folder = user_path(path)
        spec = json.loads(json.dumps(spec))
        known = os.path.lexists(folder / "spec.json")
        if not known:
            cells = {"position": range(len(cells["id"])), **cells}
            seal = write_rows(folder / _CELLS, cells)
            plan = json.loads(json.dumps({**plan, "seal": seal}))
            written = sealed.write_json(folder / "plan.json", RUN_PLAN, plan, indent=None)
            named = {"spec": spec, "plan": written}  # last: a folder with a spec is a run
            sealed.write_json(folder / "spec.json", RUN_SPEC, named)
        store = cls.open(folder)
        if store.spec != spec:
            raise FulaError(
                f"'{folder}' holds a run of another spec "
                f"({describe_differences(store.spec, spec)}); give another --out, or the old spec"
            )
        if known and store.cell_ids.keys() != set(map(_text, cells["id"])):
            raise FulaError(
                f"'{folder}' was planned with other cells for this same spec, so by another "
                "version of fula_fast; give another --out"
            )
        remove_stale(folder)
        return store

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """The run in `path`; raises `FulaError` if there is none."""
        folder = user_path(path)
        found = _read(folder, "spec.json", RUN_SPEC, _Spec)
        plan = _read(folder, "plan.json", RUN_PLAN, _Plan)
        if sealed.digest_of(plan) != found["plan"]:
            raise sealed.Damaged(
                folder / "plan.json", RUN_PLAN, "it does not belong to spec.json beside it"
            )
        return cls(folder, found["spec"], plan)

    # Cells

    @cached_property
    def cell_ids(self) -> dict[str, None]:
        """The ids of the planned cells, in the plan's order."""
        found = self.planned.all_of("id", "position")
        return dict.fromkeys(found["id"].take(found["position"].to_numpy().argsort()).to_pylist())

    def waves(self) -> dict[str, list[str]]:
        """The planned waves, each with the ids of its cells."""
        ids, start, found = self.planned.all_of("id")["id"].to_pylist(), 0, {}
        waves = self.plan["waves"]
        for name, count in zip(waves["id"], waves["cells"], strict=True):
            found[name] = ids[start : start + count]
            start += count
        return found

    def done(self) -> set[str]:
        """Ids of the cells that have an `ok` row."""
        return self._finished.done()

    def failed(self) -> set[str]:
        """Ids of the cells whose only rows are `failed`."""
        return self._finished.failed()

    def settled(self, since: str | None) -> set[str]:
        """Ids of the cells that are done, or (`since`: a time in UTC, ISO 8601) failed after it."""
        return self.done() if since is None else self.done() | self.written_since(since)

    def written_since(self, moment: str) -> set[str]:
        """Ids of the cells that were written after a time in UTC (ISO 8601)."""
        return {c for shard in self._shards() if shard.written >= moment for c in shard.cells}

    def wave_seconds(self) -> list[float] | None:
        """Predicted seconds of every whole wave, in the plan's order: by its FLOPs and by what
        finished waves between the same donors under the same rules took, or all where there is none
        of those; None before one is finished."""
        waves, measured = self.plan["waves"], self._finished.measured()
        found = [measured.get(name, (0, 0.0)) for name in waves["id"]]
        shares = [done / cells for (done, _), cells in zip(found, waves["cells"], strict=True)]
        kinds = list(zip(waves["front"], waves["end"], waves["rule"], strict=True))
        return corrected(waves["flops"], kinds, shares, [seconds for _, seconds in found])

    def missing(self) -> list[str]:
        """Ids of the planned cells that are not done (failed ones too), in the plan's order."""
        done = self.done()
        return [cell for cell in self.cell_ids if cell not in done]

    def rows(self, cells: Container[str] | None = None) -> list[dict[str, Any]]:
        """One row per finished cell (of `cells` alone, where given), in the plan's order; `ok` rows
        supersede `failed` ones."""
        found = {row["cell"]: row for rows in self._finished.rows(cells) for row in rows}
        return [found[cell] for cell in self.cell_ids if cell in found]

    def write(
        self,
        wave_id: str,
        rows: Iterable[Mapping[str, Any]],
        stitches: Mapping[str, Mapping[str, Any]] | None = None,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Store finished cells of a wave as one shard: all of them or, on an error, none.

        `rows` need `cell` (a planned id) and `status` (`ok`, or `failed` with `error`); numbers
        that are not finite are stored as null. `stitches` maps cell ids to named arrays or
        tensors, `statistics` the running statistics of the cells' models. Damaged shards of this
        wave are set aside as `*.damaged`.
        """
        check_there(self.folder)
        rows, stitches, statistics = clean_rows(rows), stitches or {}, statistics or {}
        self._check(rows, {*stitches, *statistics})
        sub = folder_of(wave_id)
        stem = next_stem(self._finished.paths(sub), wave_id, rows)
        named = {**stitches, **{_STATISTICS + cell: part for cell, part in statistics.items()}}
        tensors = {
            f"{owner}/{name}": t for owner, part in named.items() for name, t in part.items()
        }
        stitches_file = self._stitches(sub) / f"{stem}.safetensors"
        shard, entry = self.folder / "cells" / sub / f"{stem}.json", None
        try:
            if tensors:
                meta = {"run": self.id, "wave": wave_id}
                digest = sealed.write_tensors(stitches_file, STITCHES, tensors, meta)
                entry = stitches_file, digest
            write_shard(shard, self.id, wave_id, rows, entry)
        except BaseException:
            # A shard in its place (only the flush of its folder failed) needs its stitches.
            if not shard.exists():
                stitches_file.unlink(missing_ok=True)
            raise
        self._finished.set_aside(wave_id)

    def stitch(self, cell: str) -> dict[str, Tensor]:
        """The trained stitch of a cell, as CPU tensors by name; raises `FulaError` if unknown."""
        if tensors := self._trained.of(cell, cell):
            return tensors
        raise FulaError(f"'{self.folder}' holds no stitch of cell '{cell}'; see its results.csv")

    def statistics(self, cell: str) -> dict[str, Tensor]:
        """Running statistics of a cell's model, by name; none where training moved none."""
        return self._trained.of(cell, _STATISTICS + cell)

    def tidy(self) -> None:
        """Remove what killed processes left behind, unless another one is at work here: temporary
        files, stitches without their shard, checkpoints of waves that are done."""
        remove_stale(self.folder)
        if self.writers.others():
            return
        for path in (self.folder / "stitches").glob("??/*.safetensors"):
            if not os.path.lexists(self.folder / "cells" / path.parent.name / f"{path.stem}.json"):
                remove(path)
        if not self.missing():
            self.checkpoints.drop_all()

    def verify_stitches(self) -> None:
        """Read all stitches; the cells of damaged ones count as missing from then on."""
        for shard in self._shards():
            if shard.stitches:
                try:
                    self._trained.read(shard)
                except (sealed.Damaged, FileNotFoundError) as error:
                    self._finished.drop(shard, error)
                    self._trained.forget()

    def check_donors(self, hashes: Mapping[str, str]) -> None:
        """Refuse to go on with donors (name -> content hash) other than those of the `ok` rows.

        Raises `FulaError` for those.
        """
        new = {n: h for n, h in hashes.items() if self._donors.get(n) != h}
        used = {each for shard in self._shards() for each in shard.donors} if new else ()
        for name, stored in sorted(used):
            if stored != new.get(name, stored):
                raise FulaError(
                    f"donor '{name}' has content hash {new[name]}, but the finished cells of "
                    f"'{self.folder}' used {stored}; restore that donor or give another --out"
                )
        self._donors |= new

    # Tables, launches, logs

    def write_tables(self) -> None:
        """Rebuild `results.parquet` and `results.csv` from the shards."""
        save_tables(self.folder, self.table())

    def table(self) -> pyarrow.Table:
        """The rows of `results()` as a table, without an object for each."""
        shards: list[Shard] = []

        def read() -> Iterator[list[dict[str, Any]]]:
            shards.clear()
            for shard, rows in self._finished.every_row():
                shards.append(shard)
                yield rows

        with collecting_nothing():
            found = table_of(lambda: batches(read()))
        ends = accumulate(len(shard.cells) for shard in shards)
        starts = {shard: end - len(shard.cells) for shard, end in zip(shards, ends, strict=True)}
        counting = self._finished.counting()
        rows = (counting[cell] for cell in self.cell_ids if cell in counting)
        places = np.array([starts[shard] + k for shard, k in rows if shard in starts], np.int64)
        return with_self_accuracy_columns(found.take(places), self._axes)

    def results(self) -> list[dict[str, Any]]:
        """`rows()` with the Self-Accuracy of every whole cross-layer matrix, as the tables have."""
        return with_self_accuracy(self.rows(), self._axes)

    @property
    def _axes(self) -> tuple[str, ...]:
        return tuple(self.spec.get("grid", {}).get("axes", {}))

    def add_launch(self, info: Mapping[str, Any]) -> None:
        """Keep JSON-able facts of this start (versions, hardware, command) for the report."""
        now = datetime.now(UTC)
        name = f"{now:%Y%m%dT%H%M%S.%f}-{os.getpid()}.json"
        check_there(self.folder)
        content = {"started": now.isoformat(), **info}
        sealed.write_json(self.folder / "launches" / name, LAUNCH, content)

    def launches(self) -> list[dict[str, Any]]:
        """What `add_launch` kept, oldest first; damaged notes are named and left out."""
        found = []
        for path in sorted((self.folder / "launches").glob("[!.]*.json")):
            try:
                found.append(sealed.read_json(path, LAUNCH, _Launch))
            except (sealed.Damaged, sealed.Newer) as error:
                warn(error)
        return found

    @property
    def logs(self) -> Path:
        """The folder for log files, made if absent."""
        return made(self.folder / "logs")

    # Inside

    def _stitches(self, sub: str) -> Path:
        return self.folder / "stitches" / sub

    def _shards(self) -> list[Shard]:
        return self._finished.shards()

    def _check(self, rows: list[dict[str, Any]], stitches: set[str]) -> None:
        """Mistakes of the caller, not of a user."""
        cells = {row.get("cell") for row in rows}
        if unknown := cells - self.cell_ids.keys():
            raise ValueError(f"rows of cells that are not in the plan: {sorted(map(str, unknown))}")
        if wrong := {row.get("status") for row in rows} - set(STATUSES):
            raise ValueError(f"row status {wrong} is none of {STATUSES}")
        if stray := stitches - cells:
            raise ValueError(f"stitches without a row: {sorted(stray)}")


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _read(folder: Path, name: str, kind: sealed.Kind, schema: Any) -> Any:
    try:
        return sealed.read_json(folder / name, kind, schema)
    except FileNotFoundError:
        raise FulaError(
            f"'{folder}' holds no run ({name} is missing); give a folder of a sweep"
        ) from None
