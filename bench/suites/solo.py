"""One training step of a cell alone: the solo executor on a ResNet-18 of width 16, batch 128."""

from __future__ import annotations

import pytest
import torch

from fula_fast.engine.solo import SoloCell
from fula_fast.models import build
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.protocol import protocol

SITES = (1, 5, 9)


def _cell(site: int, method: str) -> SoloCell:
    torch.manual_seed(0)
    shape = {"num_classes": 10, "input_shape": (3, 32, 32)}
    front, end = (build("resnet18", **shape, width=16).eval() for _ in "ab")
    rule = protocol("fula-v2")
    shapes = front.site_shapes[site - 1], end.site_shapes[site - 1]
    stitch = new_stitch(*shapes, rule).initialise("random", 0)
    return SoloCell(front, end, site, site, {method: 1.0}, rule, stitch, steps=1000)


@pytest.mark.parametrize("site", SITES)
def bench_solo_step(benchmark, site):
    """FuLA at one site; random images, as the time does not depend on them."""
    cell = _cell(site, "fula")
    x, y = torch.rand(128, 3, 32, 32), torch.randint(10, (128,))
    result = benchmark.pedantic(cell.step, (x, y), rounds=5, warmup_rounds=1)
    assert result.loss > 0
