"""A decoder by its name: `open_decoder`."""

from __future__ import annotations

from ...errors import FulaError, nearest
from .dali import DaliDecoder, dali_installed
from .decoder import Decoder, PillowDecoder

DECODERS = ("auto", "pillow", "dali", "dali-gpu")


def open_decoder(name: str = "auto") -> Decoder:
    """`pillow`, `dali`, `dali-gpu` (JPEG on the GPU), or `auto`: DALI on the CPU if installed.

    `auto` never decodes on a GPU, though there be one: decoders of GPUs differ from those of CPUs
    in the last bit, and what a source holds (its content hash, the donors trained on it) must not
    depend on the machine that read it. Raises `FulaError` for `dali-gpu` without a CUDA device.
    """
    if name not in DECODERS:
        raise FulaError(f"unknown decoder '{name}'{nearest(name, DECODERS)}")
    if name == "pillow" or (name == "auto" and not dali_installed()):
        return PillowDecoder()
    return DaliDecoder("gpu" if name == "dali-gpu" else "cpu")
