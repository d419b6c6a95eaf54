"""Which images of a batch are attacked, and where the attack starts: the host's random numbers of
an attacked wave, as tensors of fixed places that a captured step reads.

Every alpha has a fixed count of images per batch, so only their places vary from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..attacks.start_noise import start_noise
from ..pipelines.streams.base import on_device
from ..study.cell import Cell
from .lanes import Lane
from .task import attacked_mask


@dataclass(frozen=True)
class Share:
    """The lanes (wave numbers) of one alpha: attacked together, on the same images of each batch.

    The places are drawn from the data seed, which a wave's lanes have in common.
    """

    lanes: tuple[int, ...]
    cell: Cell

    def places(self, epoch: int, step: int, batch_size: int) -> np.ndarray:
        """Places in the batch, ascending: int64 (floor(alpha * B),)."""
        return attacked_mask(self.cell, epoch, step, batch_size).nonzero()[:, 0].numpy()


def shares_of(lanes: Sequence[Lane]) -> list[Share]:
    """The shares of a wave, by alpha; lanes without attack are in none."""
    found: dict[float, list[int]] = {}
    for number, lane in enumerate(lanes):
        if lane.cell.alpha > 0:
            found.setdefault(lane.cell.alpha, []).append(number)
    return [Share(tuple(n), lanes[n[0]].cell) for _, n in sorted(found.items())]


class Draw(NamedTuple):
    """A batch's random numbers on the device: `places` int64 (m,) of every share, and start `noise`
    like the batch where the attack has a random start."""

    places: list[Tensor]
    noise: Tensor | None


def draw(
    shares: Sequence[Share], epoch: int, step: int, images: Tensor, numbers: Sequence[int] | None
) -> Draw:
    """The draw for the batch `images` (B, ...), whose images have these `numbers`; None where
    there is no random start."""
    places = [s.places(epoch, step, len(images)) for s in shares]
    noise = None
    if numbers is not None:
        noise = on_device(noise_of(shares, places, epoch, numbers, images.shape), images.device)
    return Draw([on_device(p, images.device) for p in places], noise)


def noise_of(
    shares: Sequence[Share],
    places: Sequence[np.ndarray],
    epoch: int,
    numbers: Sequence[int],
    shape: Sequence[int],
) -> np.ndarray:
    """Start noise like a batch of `shape`, (B, C, H, W), zero for images that nobody attacks."""
    cell = shares[0].cell
    noise = np.zeros(tuple(shape), np.float32)
    used = np.unique(np.concatenate(places))
    index = [int(numbers[p]) for p in used]
    norm = cell.protocol.attack.norm
    noise[used] = start_noise(norm, index, shape[1:], seed=cell.data_seed, stream=epoch).numpy()
    return noise


class ShareTable:
    """The draws of a whole epoch, in tensors that keep their places from epoch to epoch.

    `load` an epoch, then `aim` at a step: host work, outside a captured step; inside it, `draw_at`
    reads the step's numbers. `images`: a batch, for its shape and device.
    """

    def __init__(self, shares: Sequence[Share], stream, images: Tensor) -> None:
        self._shares, self._stream, self._shape = shares, stream, tuple(images.shape)
        self._device = images.device
        counts = [len(s.places(0, 0, len(images))) for s in shares]
        self._places = [self._empty(stream.steps, count) for count in counts]
        random = shares[0].cell.protocol.attack.random_start
        self._noise = torch.zeros_like(images, dtype=torch.float32) if random else None
        self._epoch, self._host, self._order = 0, [], np.zeros(0, np.int64)

    def _empty(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def load(self, epoch: int) -> None:
        """Draw all steps of an epoch."""
        steps, size = range(self._stream.steps), self._shape[0]
        self._epoch = epoch
        self._host = [np.stack([s.places(epoch, k, size) for k in steps]) for s in self._shares]
        for mine, drawn in zip(self._places, self._host, strict=True):
            mine.copy_(on_device(drawn, self._device))
        if self._noise is not None:
            self._order = self._stream.order(epoch)

    def aim(self, step: int) -> None:
        """Make ready what is too large to hold for a whole epoch: the start noise of a step."""
        if self._noise is None:
            return
        size = self._shape[0]
        numbers = self._order[step * size : (step + 1) * size]
        places = [rows[step] for rows in self._host]
        drawn = noise_of(self._shares, places, self._epoch, numbers, self._shape)
        self._noise.copy_(on_device(drawn, self._device))

    def draw_at(self, step: Tensor) -> Draw:
        """The draw of a step, its number () int64 on the device."""
        places = [rows.index_select(0, step.view(1))[0] for rows in self._places]
        return Draw(places, self._noise)
