"""Two lanes and their end at two sites, batch by batch, as tables of a wave get them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

SHAPES = [(3, 4, 4), (5, 2, 2)]
BATCHES, SIZE = 4, 6


class Stitched(NamedTuple):
    """Per site: the end's own activations (batches, images, ...), and those of lanes 0 and 1, of
    which lane 1 joins at site 2."""

    targets: list[np.ndarray]
    lanes: list[list[np.ndarray]]

    def batches(self):
        """(site, lanes, h, g, numbers of the images), batch by batch."""
        for batch in range(BATCHES):
            index = torch.arange(SIZE) + batch * SIZE
            for site, lanes in ((1, [0]), (2, [0, 1])):
                h = np.concatenate([self.lanes[site - 1][lane][batch] for lane in lanes])
                g = self.targets[site - 1][batch]
                yield site, lanes, torch.from_numpy(h), torch.from_numpy(g), index

    def means(self, lane: int, site: int) -> tuple[np.ndarray, np.ndarray]:
        """Means over positions of a lane and the end, of all images."""
        both = self.lanes[site - 1][lane], self.targets[site - 1]
        return tuple(x.reshape(-1, *SHAPES[site - 1]).mean((2, 3)) for x in both)


@pytest.fixture
def data() -> Stitched:
    draw = np.random.default_rng(0)
    targets = [draw.normal(2, 1, (BATCHES, SIZE, *shape)) for shape in SHAPES]
    return Stitched(
        targets, [[t + draw.normal(0, s, t.shape) for s in (0.3, 2.0)] for t in targets]
    )
