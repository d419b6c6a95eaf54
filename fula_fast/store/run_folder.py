"""`Store`: one run's folder."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FulaError, FulaWarning
from ..paths import user_path
from .differences import describe_differences
from .files import folder as made
from .files import remove_stale, write_json, writing
from .matrices import with_self_accuracy
from .shards import (
    STATUSES,
    Shard,
    ShardError,
    clean_rows,
    folder_of,
    next_stem,
    read_shard,
    wave_of,
    write_shard,
)
from .tables import write_tables
from .tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor


_STATISTICS = "statistics/"
"""Before a cell's id, in the names of the statistics beside its stitch."""


class StoreWarning(FulaWarning):
    """A file of the run is damaged; what it held counts as missing and will be done again."""


class Store:
    """A run's folder: its spec and plan, finished cells, stitches, wave checkpoints and tables.

    Make one with `Store.create` (to work) or `Store.open` (to read; writes nothing by itself).
    All writes are atomic and raise `FulaError` where the folder cannot be written.
    """

    def __init__(self, folder: Path, spec: dict[str, Any], plan: dict[str, Any]) -> None:
        self.folder = folder
        self.spec = spec
        self.plan = plan
        self._planned = dict.fromkeys(cell["id"] for cell in plan["cells"])  # in order
        self._shards: dict[Path, Shard] = {}  # shards never change: each is read once
        self._damaged: set[Path] = set()

    @classmethod
    def create(cls, path: str | Path, spec: dict[str, Any], plan: dict[str, Any]) -> Store:
        """Start a run in `path`, or go on with the same run.

        `spec` and `plan` are JSON-able; `plan["cells"]` lists the cells, each with its `id`. A
        folder that holds the same spec keeps its stored plan (partition, precision, backend).
        Raises `FulaError` if the folder holds another spec, or other cells for this spec.
        """
        folder = user_path(path)
        spec, plan = json.loads(json.dumps(spec)), json.loads(json.dumps(plan))
        if not os.path.exists(folder / "spec.json"):
            write_json(folder / "plan.json", plan)
            write_json(folder / "spec.json", spec)  # last: a folder with a spec is a run
        store = cls.open(folder)
        if store.spec != spec:
            raise FulaError(
                f"'{folder}' holds a run of another spec "
                f"({describe_differences(store.spec, spec)}); give another --out, or the old spec"
            )
        if store._planned.keys() != {cell["id"] for cell in plan["cells"]}:
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
        return cls(folder, _read_json(folder, "spec.json"), _read_json(folder, "plan.json"))

    # Cells

    def done(self) -> set[str]:
        """Ids of the cells that have an `ok` row."""
        return {row["cell"] for row in self._latest().values() if row["status"] == "ok"}

    def failed(self) -> set[str]:
        """Ids of the cells whose only rows are `failed`."""
        return {row["cell"] for row in self._latest().values() if row["status"] == "failed"}

    def missing(self) -> list[str]:
        """Ids of the planned cells that are not done (failed ones too), in the plan's order."""
        done = self.done()
        return [cell for cell in self._planned if cell not in done]

    def rows(self) -> list[dict[str, Any]]:
        """One row per finished cell, in the plan's order; `ok` rows supersede `failed` ones."""
        latest = self._latest()
        return [latest[cell] for cell in self._planned if cell in latest]

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
        rows, stitches, statistics = clean_rows(rows), stitches or {}, statistics or {}
        self._check(rows, {*stitches, *statistics})
        sub = folder_of(wave_id)
        stem = next_stem(self._paths(sub), wave_id, rows)
        named = {**stitches, **{_STATISTICS + cell: part for cell, part in statistics.items()}}
        tensors = {
            f"{owner}/{name}": t for owner, part in named.items() for name, t in part.items()
        }
        file = self._stitches(sub) / f"{stem}.safetensors" if tensors else None
        if file:
            write_tensors(file, tensors, {"wave": wave_id})
        shard = self.folder / "cells" / sub / f"{stem}.json"
        try:
            write_shard(shard, wave_id, rows, file)
        except BaseException:
            # A shard in its place (only the flush of its folder failed) needs its stitches.
            if file and not shard.exists():
                file.unlink(missing_ok=True)
            raise
        self._set_aside(wave_id)

    def stitch(self, cell: str) -> dict[str, Tensor]:
        """The trained stitch of a cell, as CPU tensors by name; raises `FulaError` if unknown."""
        if tensors := self._tensors(cell, cell):
            return tensors
        raise FulaError(f"'{self.folder}' holds no stitch of cell '{cell}'; see its results.csv")

    def statistics(self, cell: str) -> dict[str, Tensor]:
        """Running statistics of a cell's model, by name; none where training moved none."""
        return self._tensors(cell, _STATISTICS + cell)

    def _tensors(self, cell: str, owner: str) -> dict[str, Tensor]:
        for shard in self._all():
            ok = {row["cell"] for row in shard.rows if row["status"] == "ok"}
            if shard.stitches and cell in ok:
                tensors, _ = read_tensors(shard.stitches, f"{owner}/")
                if tensors:
                    return tensors
        return {}

    def check_donors(self, hashes: Mapping[str, str]) -> None:
        """Refuse to go on with donors (name -> content hash) other than those of the `ok` rows."""
        for row in self.rows():
            for side in ("front", "end"):
                stored, given = row.get(f"{side}_hash"), hashes.get(row.get(side, ""))
                if row["status"] == "ok" and stored and given and stored != given:
                    raise FulaError(
                        f"donor '{row[side]}' has content hash {given}, but the finished cells of "
                        f"'{self.folder}' used {stored}; restore that donor or give another --out"
                    )

    # Tables, launches, logs

    def write_tables(self) -> None:
        """Rebuild `results.parquet` and `results.csv` from the shards."""
        write_tables(self.folder, self.results())

    def results(self) -> list[dict[str, Any]]:
        """`rows()` with the Self-Accuracy of every whole cross-layer matrix, as the tables have."""
        axes = tuple(self.spec.get("grid", {}).get("axes", {}))
        return with_self_accuracy(self.rows(), axes)

    def add_launch(self, info: Mapping[str, Any]) -> None:
        """Keep JSON-able facts of this start (versions, hardware, command) for the report."""
        now = datetime.now(UTC)
        name = f"{now:%Y%m%dT%H%M%S.%f}-{os.getpid()}.json"
        write_json(self.folder / "launches" / name, {"started": now.isoformat(), **info})

    def launches(self) -> list[dict[str, Any]]:
        """What `add_launch` kept, oldest first."""
        paths = sorted((self.folder / "launches").glob("[!.]*.json"))
        return [json.loads(path.read_text("utf-8")) for path in paths]

    @property
    def logs(self) -> Path:
        """The folder for log files, made if absent."""
        return made(self.folder / "logs")

    # A wave's progress

    def save_checkpoint(
        self, wave_id: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> None:
        """Replace the wave's checkpoint: named arrays or tensors, and JSON-able `meta`."""
        write_tensors(self._checkpoint(wave_id), tensors, meta)

    def load_checkpoint(self, wave_id: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The wave's checkpoint on the CPU, or `None`; a damaged one is named and ignored."""
        path = self._checkpoint(wave_id)
        if not path.exists():
            return None
        from safetensors import SafetensorError

        try:
            return read_tensors(path)
        except SafetensorError as error:
            self._warn(path, str(error), "the wave starts anew")
            return None

    def drop_checkpoint(self, wave_id: str) -> None:
        """Delete the wave's checkpoint, if there is one."""
        path = self._checkpoint(wave_id)
        with writing(path):
            path.unlink(missing_ok=True)

    # Inside

    def _checkpoint(self, wave_id: str) -> Path:
        folder_of(wave_id)  # refuses ids that are no file names
        return self.folder / "checkpoints" / f"{wave_id}.safetensors"

    def _stitches(self, sub: str) -> Path:
        return self.folder / "stitches" / sub

    def _paths(self, sub: str = "??") -> list[Path]:
        return [path for path in (self.folder / "cells").glob(f"{sub}/*.json") if wave_of(path)]

    def _all(self) -> list[Shard]:
        """All sound shards, oldest first; each damaged one is named once."""
        for path in self._paths():
            if path not in self._shards and path not in self._damaged:
                self._read(path)
        return sorted(self._shards.values(), key=lambda shard: (shard.written, shard.path.name))

    def _read(self, path: Path) -> None:
        try:
            self._shards[path] = read_shard(path, self._stitches(path.parent.name))
        except ShardError as error:
            self._damaged.add(path)
            self._warn(path, str(error), "its cells count as missing; --resume does them again")

    def _latest(self) -> dict[str, dict[str, Any]]:
        """Each cell's row: its first `ok` one, else its last `failed` one."""
        latest: dict[str, dict[str, Any]] = {}
        for shard in self._all():
            for row in shard.rows:
                if latest.get(row["cell"], {}).get("status") != "ok":
                    latest[row["cell"]] = row
        return latest

    def _check(self, rows: list[dict[str, Any]], stitches: set[str]) -> None:
        """Mistakes of the caller, not of a user."""
        cells = {row.get("cell") for row in rows}
        if unknown := cells - self._planned.keys():
            raise ValueError(f"rows of cells that are not in the plan: {sorted(map(str, unknown))}")
        if wrong := {row.get("status") for row in rows} - set(STATUSES):
            raise ValueError(f"row status {wrong} is none of {STATUSES}")
        if stray := stitches - cells:
            raise ValueError(f"stitches without a row: {sorted(stray)}")

    def _set_aside(self, wave_id: str) -> None:
        for path in [path for path in self._damaged if wave_of(path) == wave_id]:
            path.rename(path.with_suffix(".json.damaged"))
            self._damaged.discard(path)

    def _warn(self, path: Path, reason: str, effect: str) -> None:
        warnings.warn(f"'{path}' is damaged: {reason}; {effect}", StoreWarning, stacklevel=2)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise FulaError(f"'{folder}' holds no run ({name} is missing); give a folder of a sweep")
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FulaError(f"'{path}' is damaged ({error}); give another --out") from error
