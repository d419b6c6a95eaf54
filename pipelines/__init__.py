"""Data: named sources, keyed randomness, and streams of device batches.

A source (named data set, folder, archive, synthetic generator) is decoded once to uint8 and read
through a stream. Importing this package imports neither torch nor Pillow nor DALI; each name below
loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "images": ("ImageSet", "Source", "check_classes"),
    "files": ("FileSet",),
    "randomness": ("Augmentation", "EpochDraw", "draw_epoch"),
    "augment": ("Normalisation",),
    "shortcuts": ("Markers", "Shortcut", "draw_markers"),
    "sources": ("load_source", "source_names"),
    "streams": (
        "Batch",
        "ReferenceStream",
        "ResidentStream",
        "Stream",
        "into_buffers",
        "open_stream",
    ),
    "evaluate": ("evaluation_batches", "take"),
    "dali_stream": ("DaliStream",),
    "noise": ("NoiseSet",),
    "paired": ("PairedStream", "paired_evaluation"),
    "imagenet": ("prepare_ls_imagenet_10",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = list(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
