"""Which data an experiment takes: the paper's set, or a labelled stand-in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.paths import user_path
from ..study.facts import DataFacts
from .recipe import catalogue, merged, scale_settings


@dataclass(frozen=True)
class Chosen:
    """A data set of the catalogue at a scale.

    `table`: a `[data]` table of a spec. `limits`: the part that stitches are trained and tested
    on. `facts`: nominal, for pricing. `stands_in_for`: the paper's set, empty for itself.
    `missing`: why it cannot be had, empty where it can.
    """

    label: str
    table: dict[str, Any]
    limits: dict[str, int]
    facts: DataFacts
    settings: dict[str, Any]
    stands_in_for: str = ""
    missing: str = ""

    @property
    def run_facts(self) -> DataFacts:
        """Facts of the limited part."""
        images = min(self.facts.train_images, self.limits.get("train_images", 10**9))
        return DataFacts(self.facts.shape, self.facts.classes, images)

    @property
    def words(self) -> str:
        """The label, with what it stands in for."""
        return self.label + (f" (stands in for {self.stands_in_for})" if self.stands_in_for else "")


def data_folder(given: str | Path | None = None) -> Path:
    """Where data is looked for: `given`, else `$FULA_DATA`, else `./data`."""
    return user_path(given or os.environ.get("FULA_DATA") or "data")


def choose(name: str, scale: str, folder: Path, side: int | None = None) -> Chosen:
    """The data set `name` at a scale, from what lies in `folder`; `side` replaces the images'."""
    entry = catalogue()["data"][name]
    settings = scale_settings(scale).get("data", {}).get(name, {})
    kinds = [settings["use"]] if "use" in settings else entry["kinds"]
    found = ((kind, _places(kind, folder)) for kind in kinds)
    kind, place = next((f for f in found if f[1]), (kinds[0], None))
    size = side or settings.get("size", entry["shape"][1])
    table = merged(
        {"source": kind["source"], "size": size, "data_dir": str(place or _would_be(kind, folder))},
        entry.get("table", {}),
        settings.get("table", {}),
        {"options": kind["options"]} if "options" in kind else {},
    )
    return Chosen(
        label=kind["label"],
        table=table,
        limits=settings.get("run", {}),
        facts=DataFacts((entry["shape"][0], size, size), 10, _images(kind, entry, settings)),
        settings=settings,
        stands_in_for=kind.get("stands_in_for", ""),
        missing="" if place else f"no {_wanted(kinds)} in '{folder}'",
    )


def _wanted(kinds: Sequence[Mapping[str, Any]]) -> str:
    """The names that were looked for: the paper's own data, then its stand-ins."""
    own, *others = (" or ".join(kind["find"]) for kind in kinds if "find" in kind)
    return own + (f" (or, to stand in for it, {' or '.join(others)})" if others else "")


def _would_be(kind: Mapping[str, Any], folder: Path) -> Path:
    """Where absent data is planned to lie, so that two absent sets stay two."""
    return folder / kind["find"][0].rstrip("*") if kind.get("there") else folder


def _images(kind: Mapping[str, Any], entry: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    if "use" in settings:
        return 1442  # smoke runs on scikit-learn's digits
    most = settings.get("table", {}).get("train_images", entry["images"])
    return min(kind.get("images", entry["images"]), most)


def _places(kind: Mapping[str, Any], folder: Path) -> Path | None:
    """The data_dir under which a kind is found; None where it is not there."""
    if kind.get("digits"):
        return digits_archive()
    if "find" not in kind:
        return folder
    hits = [p for pattern in kind["find"] for p in sorted(folder.glob(pattern))]
    if not hits:
        return None
    return hits[0] if kind.get("there") else folder


_FAINT = 96  # of 255: enlarged digits have gray where MNIST's have nothing


def digits_archive() -> Path:
    """scikit-learn's digits in MNIST's form, 20x20 pixels in the middle of 28x28 on a background of
    zeros (which Colour MNIST colours), written to the cache once."""
    from ..pipelines.decode.cache import build_once

    return build_once("reproduce", "digits-20-in-28", _write_digits) / "mnist.npz"


def _write_digits(folder: Path) -> None:
    import numpy as np

    from ..pipelines import load_source

    source = load_source("digits", size=20, channels=1)
    arrays = {}
    for split in ("train", "test"):
        images = getattr(source, split)
        strokes = np.where(images.images[..., 0] < _FAINT, 0, images.images[..., 0])
        framed = np.pad(strokes, ((0, 0), (4, 4), (4, 4)))
        arrays |= {f"{split}_x": framed, f"{split}_y": images.labels}
    np.savez_compressed(folder / "mnist.npz", **arrays)
