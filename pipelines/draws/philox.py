"""Philox4x32-10, the counter-based generator for bulk noise made on the device.

The same numbers come from NumPy (`philox`, the reference) and from torch integer operations on any
device (`philox_tensor`): word j of sample `index` is a pure function of (seed, epoch, purpose,
index, j). Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .randomness import Purpose

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Reference: counters (N, 4) to random words (N, 4), both uint32; `key` two 32-bit words."""
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = key
    shift, mask = np.uint64(32), np.uint64(_MASK)
    for _ in range(_ROUNDS):
        low, high = c0 * np.uint64(_M0), c2 * np.uint64(_M1)
        c0, c1, c2, c3 = (
            (high >> shift) ^ c1 ^ np.uint64(k0),
            high & mask,
            (low >> shift) ^ c3 ^ np.uint64(k1),
            low & mask,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return np.stack([c0, c1, c2, c3], 1).astype(np.uint32)


def philox_tensor(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: tuple[int, int]
) -> torch.Tensor:
    """Four int64 tensors of 32-bit counters, broadcast, to random words (..., 4) in int64.

    A product of two 32-bit words wraps in int64, but its 64 bits are the right ones.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low, high = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (high >> 32 & _MASK) ^ c1 ^ k0,
            high & _MASK,
            (low >> 32 & _MASK) ^ c3 ^ k1,
            low & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def sample_words(
    index: torch.Tensor, count: int, *, seed: int, epoch: int, purpose: Purpose
) -> torch.Tensor:
    """Words 0 … count-1 of the samples `index` (B,) int64: (B, count) int64 in [0, 2**32).

    Counter: (block of four words, index, epoch + 1, purpose); key: the seed. Indices and epochs
    are below 2**32.
    """
    blocks = torch.arange((count + 3) // 4, device=index.device)
    fixed = [torch.full((), c, device=index.device) for c in (epoch + 1, int(purpose))]
    words = philox_tensor((blocks, index[:, None], *fixed), (seed & _MASK, seed >> 32 & _MASK))
    return words.flatten(1)[:, :count]


def uniforms(words: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 1) from 32-bit words of any shape, 24 bits each."""
    return (words >> 8).float() * 2**-24


def normals(words: torch.Tensor) -> torch.Tensor:
    """Standard normal float32 (B, n) from words (B, 2·⌈n/2⌉), by Box and Muller's transform."""
    first, second = words.unflatten(1, (-1, 2)).unbind(-1)
    radius = (-2 * torch.log(((first >> 8) + 1).float() * 2**-24)).sqrt()
    angle = (2 * math.pi) * uniforms(second)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1)
