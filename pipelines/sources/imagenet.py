"""LS-ImageNet-10: ten ImageNet classes at 32x32, prepared once from an ImageNet folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import FulaError
from ...files.atomic import replacing_folder
from ...files.paths import user_path
from ..decode.decoder import PillowDecoder
from ..decode.files import check_on_error, filled, report_skipped
from ..decode.folders import IMAGES, FolderIndex, files_in, splits_of
from ..decode.trees import FileTree, open_tree

CLASSES = (
    "n01978455", "n02089973", "n02091831", "n02804414", "n02974003",
    "n03379051", "n03424325", "n04026417", "n04127249", "n07715103",
)  # fmt: skip
SIZE = 32
_CHUNK = 1024


@dataclass(frozen=True)
class Prepared:
    """How many `images` were written, and the places of unreadable files left out."""

    images: int
    skipped: tuple[str, ...]


def prepare_ls_imagenet_10(
    imagenet: str | Path, out: str | Path, on_error: str = "raise"
) -> Prepared:
    """Write the ten classes of an ImageNet folder (train/<wnid>/, val/<wnid>/) as PNG under `out`.

    Shorter side 32, centre crop. `on_error="skip"` leaves unreadable files out. `out` appears only
    when complete; one that exists is refused, and so are two files of a class with one name. Raises
    `FulaError` for those.
    """
    check_on_error(on_error)
    out = user_path(out)
    if out.exists():
        raise FulaError(f"'{out}' exists; remove it, or give another folder")
    tree = open_tree(user_path(imagenet))
    splits = splits_of(tree)
    if splits is None:
        raise FulaError(
            f"'{imagenet}' has no train/<wnid>/ beside val/<wnid>/; give ImageNet's folder"
        )
    indices = [_ten_classes(tree, split) for split in splits]
    targets = [_targets(index) for index in indices]
    with replacing_folder(out) as scratch:
        parts = [
            _write_split(index, places, scratch / name, on_error)
            for index, places, name in zip(indices, targets, ("train", "val"), strict=True)
        ]
    return Prepared(sum(p.images for p in parts), sum((p.skipped for p in parts), ()))


def _ten_classes(tree: FileTree, split: str) -> FolderIndex:
    missing = [c for c in CLASSES if f"{split}/{c}" not in tree.folders]
    if missing:
        raise FulaError(
            f"'{tree.root}/{split}' lacks class {missing[0]} ({len(missing)} of 10 missing); give "
            "the whole ImageNet folder"
        )
    parts = [files_in(tree, f"{split}/{c}", IMAGES) for c in CLASSES]
    labels = np.repeat(np.arange(10), [len(part) for part in parts])
    return FolderIndex(tree, np.concatenate(parts), labels, CLASSES)


def _targets(index: FolderIndex) -> list[str]:
    """`<wnid>/<name>.png` of every sample, no two alike."""
    taken: dict[str, int] = {}
    for i in range(len(index)):
        target = f"{CLASSES[index.labels[i]]}/{Path(index.where(i)).stem}.png"
        if target in taken:
            raise FulaError(
                f"images '{index.where(taken[target])}' and '{index.where(i)}' would both become "
                f"{target}; rename or remove one"
            )
        taken[target] = i
    return list(taken)


def _write_split(
    index: FolderIndex, targets: Sequence[str], folder: Path, on_error: str
) -> Prepared:
    from PIL import Image

    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    kept = np.zeros(len(index), dtype=bool)
    for start in range(0, len(index), _CHUNK):
        samples = range(start, min(start + _CHUNK, len(index)))
        images = PillowDecoder()(index, samples, SIZE, 3, on_error)
        for i, pixels in zip(samples, images, strict=True):
            if pixels is not None:
                Image.fromarray(pixels).save(folder / targets[i])
                kept[i] = True
    filled(index.only(kept))
    return Prepared(int(kept.sum()), report_skipped(index, kept))
