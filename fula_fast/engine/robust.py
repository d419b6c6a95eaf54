"""The attack on lanes: images of many of them packed into the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..attacks import RobustResult
from ..robust import attacked_models
from .packed import PackedWave
from .wave import Wave

_IMAGE_ROOM = 2**30
"""Bytes of adversarial images held at a time."""

Attacked = tuple[int, dict[str, Any], RobustResult]


def attacked_lanes(
    wave: Wave,
    numbers: Sequence[int],
    images: Tensor,
    labels: Tensor,
    attack: str,
    options: Mapping[str, Any],
) -> Iterator[list[Attacked]]:
    """(number, columns, result) of the lanes `numbers`, as many at a time as there is room for.

    Arguments as of `robust.attacked_models`.
    """
    room = max(_IMAGE_ROOM // (4 * images.numel()), 1)
    end = partial(_end, wave)
    for start in range(0, len(numbers), room):
        part = numbers[start : start + room]
        found = attacked_models(PackedWave(wave, part), end, images, labels, attack, options)
        yield [(n, *pair) for n, pair in zip(part, found, strict=True)]


def _end(wave: Wave, x: Tensor) -> Tensor:
    """The end donor's logits, in eval mode."""
    return wave.network.native_evaluation(x.to(wave.dtype))[-1].float()
