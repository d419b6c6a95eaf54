"""LS-ImageNet-10: ten ImageNet classes at 32x32, prepared once from an ImageNet folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from ..errors import FulaError
from .decode import decode_file
from .folders import IMAGES, FolderIndex, files_in, splits_of
from .trees import FileTree, open_tree

CLASSES = (
    "n01978455", "n02089973", "n02091831", "n02804414", "n02974003",
    "n03379051", "n03424325", "n04026417", "n04127249", "n07715103",
)  # fmt: skip
SIZE = 32


def prepare_ls_imagenet_10(imagenet: str | Path, out: str | Path) -> int:
    """Write the ten classes of an ImageNet folder (train/<wnid>/, val/<wnid>/) as PNG under `out`.

    Shorter side 32, centre crop. Returns the number of images. `out` appears only when complete;
    one that exists is refused.
    """
    out = Path(out)
    if out.exists():
        raise FulaError(f"'{out}' exists; remove it, or give another folder")
    tree = open_tree(Path(imagenet))
    splits = splits_of(tree)
    if splits is None:
        raise FulaError(
            f"'{imagenet}' has no train/<wnid>/ beside val/<wnid>/; give ImageNet's folder"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=out.parent))
    try:
        count = sum(
            _write_split(_ten_classes(tree, split), scratch / name)
            for split, name in zip(splits, ("train", "val"), strict=True)
        )
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return count


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


def _write_split(index: FolderIndex, folder: Path) -> int:
    from PIL import Image

    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for i in range(len(index)):
        stem = Path(index.where(i)).stem
        target = folder / CLASSES[index.labels[i]] / f"{stem}.png"
        Image.fromarray(decode_file(index, i, SIZE, 3)).save(target)
    return len(index)
