"""The attack on lanes: images of many of them packed into the same batches.

Whatever precision a wave trained in, it is attacked as the float32 models that its stitches and
running statistics make with the donors' own weights: those are what an adversarial image must fool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attacks import RobustResult
from ..models import Staged
from ..robust import attacked_models
from .network import Network, statistics
from .packed import PackedWave
from .wave import Wave

_IMAGE_ROOM = 2**30
"""Bytes of adversarial images held at a time."""

Attacked = tuple[int, dict[str, Any], RobustResult]


def attacked_lanes(
    wave: Wave,
    donors: tuple[Staged, Staged],
    numbers: Sequence[int],
    images: Tensor,
    labels: Tensor,
    attack: str,
    options: Mapping[str, Any],
) -> Iterator[list[Attacked]]:
    """(number, columns, result) of the lanes `numbers`, as many at a time as there is room for.

    donors: the wave's front and end. Other arguments as of `robust.attacked_models`.
    """
    room = max(_IMAGE_ROOM // (4 * images.numel()), 1)
    network = exact_network(wave, *donors)
    end = partial(_end, network)
    for start in range(0, len(numbers), room):
        part = numbers[start : start + room]
        packed = PackedWave(wave, part, network)
        found = attacked_models(packed, end, images, labels, attack, options)
        yield [(n, *pair) for n, pair in zip(part, found, strict=True)]


@torch.no_grad()
def exact_network(wave: Wave, front: Staged, end: Staged) -> Network:
    """The wave's network in float32 (float64 where it trained in that), from the donors' own
    weights and the lanes' running statistics: the wave's own, unless that is in a narrower type."""
    network, dtype = wave.network, wave.bank.flat.dtype
    if network.dtype == dtype:
        return network
    exact = Network(
        front, end, wave.lanes, wave.bank, shared=network.shared, dtype=dtype, device=wave.device
    )
    for part in ("front", "tail"):
        moved = statistics(getattr(network, part))
        for name, tensor in statistics(getattr(exact, part)).items():
            tensor.copy_(moved[name])
    return exact


def _end(network: Network, x: Tensor) -> Tensor:
    """The end donor's logits, in eval mode."""
    return network.native_evaluation(x.to(network.dtype))[-1].float()
