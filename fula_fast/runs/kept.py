"""What a run's folder keeps of its surroundings, so that it is read from anywhere, and by itself.

    RUN/donors/HASH.safetensors   the donors' weights, by the start of their content hash
    RUN/surroundings.json         where the run was started, its data folder, its normalisation

A donor that no name describes (a module of the user's own), or that is very large, stays outside.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..donors.obtain import normalisation_of
from ..engine.restore import restored_model
from ..errors import FulaError, not_none
from ..files import sealed
from ..models import (
    Normalised,
    Staged,
    content_hash,
    load_checkpoint,
    read_description,
    save_checkpoint,
)
from ..models.headed import answering
from ..models.preparation import prepared
from ..pipelines import Input
from ..pipelines.sources.by_name import data_folder
from ..store import Store
from ..study.cell import Cell
from ..study.donor_spec import DataSpec, DonorSpec
from ..study.facts import DataFacts, data_facts, donor_facts
from ..study.plan import Plan
from ..study.spec import Spec, load_spec
from .workbench import Workbench

MOST_BYTES = 2**30
"""A donor's weights beyond this are not copied into the run."""

_FILE = "surroundings.json"
_BUILT = {"model": "", "options": {}, "width": None, "stem": None} | {
    "residuals": None, "batch_norm": None, "pretrained": False, "untrained": False,
    "permute_labels": False,
}  # fmt: skip
"""What a donor's table says no more once its weights are a file that describes itself."""


def keep_surroundings(store: Store, bench: Workbench) -> None:
    """Write what the run needs to stand by itself, unless it is there."""
    place = store.folder / _FILE
    if place.exists():
        return
    for wave in bench.plan.waves:
        for name in (wave.key.front, wave.key.end):
            _keep_donor(store.folder, name, wave.key.hook, bench)
    data = bench.spec.data
    moments = normalisation_of(data, bench.source(data))
    sealed.write_json(
        place,
        sealed.SURROUNDINGS,
        {
            "folder": str(Path.cwd()),
            "data_dir": str(data_folder(data.data_dir).absolute()),
            "normalisation": moments and {"mean": list(moments.mean), "std": list(moments.std)},
            **_inputs(bench, Input(None, moments)),
        },
    )


def _inputs(bench: Workbench, usual: Input) -> dict[str, Any]:
    """What each donor takes of the images, where one takes other than the data's own."""
    shape = bench.source(bench.spec.data).image_shape
    names = dict.fromkeys(n for w in bench.plan.waves for n in (w.key.front, w.key.end))
    inputs = {name: bench.input(name) for name in names}
    if all(given == usual.of(shape) for given in inputs.values()):
        return {}
    shown = {name: asdict(given) for name, given in inputs.items()}
    return {"inputs": shown, "image_shape": list(shape)}


def _keep_donor(folder: Path, name: str, hook: str, bench: Workbench) -> None:
    donor = bench.donor(name, hook)
    path, staged = _donor_file(folder, donor.content_hash), donor.staged
    size = sum(t.nbytes for t in staged.state().values())
    if path.exists() or (_is_own(staged.name) and not staged.fitted):
        return
    if size > MOST_BYTES:
        bench.progress.note(
            f"donor {name} ({size / 2**30:.1f} GiB) is not copied into '{folder}': "
            "keep it, to attack or load this run"
        )
        return
    save_checkpoint(staged, path)


def _is_own(model: str) -> bool:
    """Whether that is a module of the user's own, which no name describes."""
    return model.startswith("module:")


def _donor_file(folder: Path, content: str) -> Path:
    return folder / "donors" / f"{content[:16]}.safetensors"


def _surroundings(folder: Path) -> dict[str, Any]:
    path = folder / _FILE
    if not path.is_file():
        raise FulaError(
            f"'{folder}' lacks {_FILE}: its sweep was stopped before its first cell; "
            "go on with it by --resume"
        )
    return sealed.read_json(path, sealed.SURROUNDINGS)


def go_where_started(folder: Path) -> None:
    """Make the folder in which a run was started this process's own, where it is there."""
    started = Path(_surroundings(folder)["folder"])
    if started.is_dir():
        os.chdir(started)


def settled_spec(store: Store) -> Spec:
    """The run's spec with every path absolute, and its donors from the run's own folder."""
    known, spec = _surroundings(store.folder), load_spec(store.spec)
    base = Path(known["folder"])
    contents = {
        row[role]: row[f"{role}_hash"]
        for row in store.rows()
        for role in ("front", "end")
        if row.get(f"{role}_hash")
    }
    donors = {
        name: _settled_donor(donor, base, _donor_file(store.folder, contents.get(name, "")), known)
        for name, donor in spec.donors.items()
    }
    return spec.model_copy(update={"data": _settled(spec.data, base, known), "donors": donors})


def _settled_donor(donor: DonorSpec, base: Path, kept: Path, known: Mapping[str, Any]) -> DonorSpec:
    update: dict[str, Any] = {"data": _settled(donor.images, base, known)}
    if kept.is_file() and not _is_own(not_none(read_description(kept)).name):
        head = donor.head if donor.headless else None  # a fitted one is in the file
        update |= _BUILT | {"checkpoint": str(kept.absolute()), "head": head}
    elif donor.checkpoint and (base / donor.checkpoint).exists():
        update["checkpoint"] = str(base / donor.checkpoint)
    return donor.model_copy(update=update)


def _settled(data: DataSpec, base: Path, known: Mapping[str, Any]) -> DataSpec:
    """A data table that finds its files from any folder, where they still are."""
    folder = str(base / data.data_dir) if data.data_dir else known["data_dir"]
    update: dict[str, Any] = {"data_dir": folder} if Path(folder).exists() else {}
    path = data.options.get("path")
    if isinstance(path, str) and (base / path).exists():
        update["options"] = data.options | {"path": str(base / path)}
    return data.model_copy(update=update)


def cell_model(
    store: Store, cell_id: str, modules: Mapping[str, Staged] | None = None
) -> nn.Module:
    """The whole stitched model of a finished cell, on the CPU, in eval mode: images in [0, 1]
    (B, C, H, W) to logits.

    `modules`: donors that are at hand, by name; needed for those that the folder does not keep.
    Raises `FulaError` for an unknown or failed cell, and for donors other than the run's.
    """
    row = next(iter(store.rows({cell_id})), None)
    if row is None or row["status"] != "ok":
        raise FulaError(f"'{store.folder}' has no finished cell '{cell_id}'; see its results.csv")
    cell = Plan.from_stored(store.plan, store.planned).lanes.named(cell_id)
    front, end = (_kept_donor(store, row, role, cell, modules or {}) for role in ("front", "end"))
    known = _surroundings(store.folder)
    if "inputs" in known:
        inputs = (Input.from_json(known["inputs"][row[role]]) for role in ("front", "end"))
        shape = known["image_shape"]
        front, end = (
            prepared(d, given, shape) for d, given in zip((front, end), inputs, strict=True)
        )
    model = restored_model(front, end, cell, store.stitch(cell_id), store.statistics(cell_id))
    moments = None if "inputs" in known else known["normalisation"]
    return model if moments is None else Normalised(model, **moments).eval()


def site_names(
    store: Store, modules: Mapping[str, Staged] | None = None
) -> dict[str, tuple[str, ...]]:
    """The names of each donor's sites; arguments and errors as of `cell_model`."""
    spec, given = settled_spec(store), modules or {}
    return {
        name: given[name].site_names if name in given else _described_sites(store, donor, spec)
        for name, donor in spec.donors.items()
    }


def _described_sites(store: Store, donor: DonorSpec, spec: Spec) -> tuple[str, ...]:
    if not donor.model and not Path(donor.checkpoint or "").is_file():
        raise _not_kept(store, donor.name)
    data = data_facts(donor.images) if donor.model else DataFacts((), 0, 0)  # a file says it all
    return donor_facts(donor, data, spec.base_protocol.hook).names


def _not_kept(store: Store, name: str) -> FulaError:
    return FulaError(
        f"'{store.folder}' does not keep donor '{name}' (a module of your own, or larger than "
        f"{MOST_BYTES >> 30} GiB); give it: models = {{'{name}': fula_fast.stages(...)}}"
    )


def _kept_donor(
    store: Store, row: Mapping[str, Any], role: str, cell: Cell, modules: Mapping[str, Staged]
) -> Staged:
    name, content = row[role], row[f"{role}_hash"]
    path, hook = _donor_file(store.folder, content), cell.protocol.hook
    if name in modules:
        staged = copy.deepcopy(modules[name]).eval()
        kept = read_description(path) if path.exists() else None
        if kept and kept.head:
            staged = load_checkpoint(path, into=answering(staged, kept.head)[0])
    elif path.exists():
        staged = load_checkpoint(path, hook=hook)
    else:
        raise _not_kept(store, name)
    if content_hash(staged) != content or staged.hook != hook:
        raise FulaError(
            f"donor '{name}' is not the one of '{store.folder}' (content hash {content}, hook "
            f"'{hook}'); give that one"
        )
    return staged.to(torch.float32)
