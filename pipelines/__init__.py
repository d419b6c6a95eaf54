"""Data: named sources, keyed randomness, and streams of device batches.

A source (named data set, folder, archive, synthetic generator) is decoded once to uint8 and read
through a stream. Importing this package imports neither torch nor Pillow nor DALI; each name below
loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "decode.images": ("ImageSet", "Source", "check_classes"),
    "decode.files": ("FileSet",),
    "draws.randomness": ("Augmentation", "EpochDraw", "draw_epoch"),
    "draws.frame": ("Frame", "Input", "Normalisation"),
    "draws.shortcuts": ("Markers", "Shortcut", "draw_markers"),
    "sources.by_name": ("load_source",),
    "sources.registry": ("NamedSource", "Nominal", "register", "source_names"),
    "streams.resident": ("ResidentStream",),
    "streams.open_stream": ("open_stream",),
    "streams.base": ("Batch", "ReferenceStream", "Stream", "into_buffers"),
    "streams.evaluate": ("evaluation_batches", "take"),
    "streams.dali_stream": ("DaliStream",),
    "streams.noise": ("NoiseSet",),
    "streams.paired": ("PairedStream", "paired_evaluation"),
    "sources.imagenet": ("prepare_ls_imagenet_10",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = list(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
