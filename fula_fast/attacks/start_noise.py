"""Start points of attacks: noise that is a pure function of (seed, stream, image index).

Drawn on the host with NumPy's Philox generator, one key per image, from raw 64-bit words only, so
that neither the batch an image travels in nor a NumPy release changes its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..errors import FulaError
from .options import check_norm

_TAG = 0xA77AC4  # apart from every other keyed stream of the project


def start_noise(
    norm: str, index: Sequence[int], shape: Sequence[int], *, seed: int, stream: int = 0
) -> Tensor:
    """Noise in the unit ball for images `index` (n,): (n, *shape) float32 on the host.

    linf: uniform on [-1, 1] per pixel. l2: a uniform direction with a length uniform on [0, 1].
    `stream` tells draws for the same image apart: the epoch in training, the stage of an attack.
    Raises `FulaError` for another norm and a seed outside [0, 2**63).
    """
    check_norm(norm)
    if not 0 <= seed < 2**63:
        raise FulaError(f"seed {seed} must lie in [0, 2**63)")
    draw = _uniform if norm == "linf" else _in_ball
    rows = [draw(_words(seed, stream, int(i), math.prod(shape))) for i in index]
    stacked = np.stack(rows) if rows else np.empty((0, math.prod(shape)), np.float32)
    return torch.from_numpy(stacked.reshape(len(rows), *shape))


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """PyTorch's own generators seeded, for models that draw random numbers, and then put back."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _words(seed: int, stream: int, image: int, count: int) -> np.ndarray:
    """`count` (+ 2 spare) pairs of uint64 words keyed by (seed, tag, stream, image)."""
    bits = np.random.Philox(key=[seed, _TAG], counter=[0, 0, stream, image])
    return bits.random_raw(2 * (count + 1)).reshape(2, count + 1)


def _unit(raw: np.ndarray) -> np.ndarray:
    """float64 in (0, 1) from uint64 words."""
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _uniform(raw: np.ndarray) -> np.ndarray:
    return (2 * _unit(raw[0, 1:]) - 1).astype(np.float32)


def _in_ball(raw: np.ndarray) -> np.ndarray:
    """Box-Muller normals, scaled to a length taken from a spare word."""
    normal = np.sqrt(-2 * np.log(_unit(raw[0, 1:]))) * np.cos(2 * np.pi * _unit(raw[1, 1:]))
    return (normal * (_unit(raw[0, 0]) / np.linalg.norm(normal))).astype(np.float32)
