"""The attack on lanes: images of many of them packed into the same batches.

Whatever precision a wave trained in, it is attacked as the float32 models that its stitches and
running statistics make with the donors' own weights: those are what an adversarial image must fool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..attacks import RobustResult
from ..attacks.columns import attacked_models
from ..attacks.options import CUDA_BATCH
from ..models import Staged
from .network import Network, statistics
from .packed_wave import PackedWave
from .wave import Wave

_IMAGE_ROOM = 2**30
"""Bytes of adversarial images held at a time."""
_LEAST_BATCH = 32
_LOG = logging.getLogger(__name__)

T = TypeVar("T")
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
        attacked = partial(attacked_models, packed, end, images, labels, attack)
        yield [(n, *pair) for n, pair in zip(part, _fitting(attacked, options), strict=True)]


def _fitting(attacked: Callable[[Mapping[str, Any]], T], options: Mapping[str, Any]) -> T:
    """`attacked(options)`, in smaller batches where a GPU's memory does not suffice: lanes that
    have been trained are not to be trained again for it. To rounding, flags do not depend on the
    size of a batch."""
    while True:
        size = options.get("batch_size") or CUDA_BATCH
        try:
            return attacked(options)
        except torch.OutOfMemoryError:
            if size < 2 * _LEAST_BATCH:
                raise
        options = {**options, "batch_size": size // 2}
        _LOG.warning("an attack on %d images at once runs out of memory: %d", size, size // 2)
        torch.cuda.empty_cache()


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
