"""The vmap peer gives the engine's results, and does the work that it should."""

from __future__ import annotations

import math

import pytest
import torch

from fula_fast.bench.harness.peer import METHODS
from fula_fast.bench.harness.vmap_peer import LaneOf, VmapPeer
from fula_fast.bench.harness.workload import flops_of
from fula_fast.engine.wave import Wave
from fula_fast.models import build, describe
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

STEPS = 3
SITES = [(1, 1), (5, 3), (3, 3), (2, 7), (9, 9)]
MODEL = {"num_classes": 5, "input_shape": (3, 8, 8), "width": 4}
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Of stitches and statistics after three steps; Adam divides a gradient of rounding errors by
itself, so that in float32 single weights go apart by as much as they move."""


def donor(seed: int):
    torch.manual_seed(seed)
    model = build("resnet18", **MODEL)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: not the identity
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model.double().eval()


def batches(steps: int = STEPS, batch: int = 16):
    rng = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.rand(batch, 3, 8, 8, generator=rng, dtype=torch.float64)
        yield x, torch.randint(5, (batch,), generator=rng)


def cells_and_stitches(front, end):
    rule = protocol("fula-v1", init="random")
    cells, stitches = [], {}
    for number, (i, j, method) in enumerate((*s, m) for s in SITES for m in METHODS):
        c = Cell("a", "b", i, j, method, {method: 1.0}, rule, seed=number, id=f"{number}")
        shapes = front.site_shapes[i - 1], end.site_shapes[j - 1]
        stitches[c.id] = new_stitch(*shapes, rule).double().initialise("random", number)
        cells.append(c)
    return cells, stitches


def lanes_of(cells, stitches):
    return [
        LaneOf(c.front_site, c.end_site, c.method, stitches[c.id].weight, stitches[c.id].bias)
        for c in cells
    ]


def trained(dtype: torch.dtype, wide: bool = True):
    """The peer and the engine's wave after three steps from the same start, and all losses of
    both, (steps, lanes)."""
    front, end = donor(0), donor(1)
    cells, stitches = cells_and_stitches(front, end)
    peer = VmapPeer(front, end, lanes_of(cells, stitches), dtype=dtype)
    wave = Wave(cells, front, end, stitches, STEPS, dtype=dtype)
    losses = [], []
    for number, (x, y) in enumerate(batches()):
        losses[0].append(peer.step(x, y).double())
        wave.step(x, y, number)
        own = torch.empty_like(wave.loss)
        own[[int(lane.cell.id) for lane in wave.lanes]] = wave.loss
        losses[1].append(own)
    return peer, wave, *(torch.stack(found) for found in losses)


@pytest.mark.parametrize("dtype", CLOSE)
def test_all_lanes_train_as_the_engine_s_do(dtype):
    peer, wave, ours, theirs = trained(dtype)
    torch.testing.assert_close(ours, theirs, rtol=CLOSE[dtype] / 10, atol=0)
    for place, lane in enumerate(wave.lanes):
        assert_lane(peer, wave, place, lane, CLOSE[dtype])
    assert_front(peer, wave, CLOSE[dtype])


def test_in_bfloat16_it_is_as_near_to_double_as_the_engine():
    """Losses, stitches and running statistics; and what three steps change is much more."""
    peer, wave, ours, theirs = trained(torch.bfloat16)
    exact, _, expected, _ = trained(torch.float64)
    ours, theirs = ((found / expected - 1).abs() for found in (ours, theirs))
    assert ours.max() < 2 * theirs.max() < 0.1 and ours.mean() < 2 * theirs.mean() < 0.02
    errors, changes = [], []
    stitches = cells_and_stitches(donor(0), donor(1))[1]
    for place, lane in enumerate(wave.lanes):
        weight, _, statistics = peer.lane(int(lane.cell.id))
        wide, _, right = exact.lane(int(lane.cell.id))
        engine = wave.bank.lane_state(place)["weight"]
        errors.append([float((found - wide).norm()) for found in (weight, engine)])
        changes.append(float((stitches[lane.cell.id].weight.detach().view_as(wide) - wide).norm()))
        for name, value in statistics.items():
            assert_close(value.double(), right[name], 0.02)
    of_peer, of_engine = (math.hypot(*found) for found in zip(*errors))
    assert of_peer < 2 * of_engine and of_peer < math.hypot(*changes) / 2


def assert_lane(peer, wave, place, lane, close):
    weight, bias, statistics = peer.lane(int(lane.cell.id))
    expected = wave.bank.lane_state(place)
    assert_close(weight, expected["weight"], close)
    assert_close(bias, expected["bias"], close)
    moved = dict(wave.network.tail.named_buffers())
    assert bool(statistics) == (lane.end_site < wave.network.tail.num_sites)
    for name, value in statistics.items():
        assert_close(value, moved[name_in_model(name, lane.end_site)][place], close)


def name_in_model(name: str, end_site: int) -> str:
    """A tail's stages are counted from its site."""
    part, place, *rest = name.split(".")
    return ".".join([part, str(int(place) + end_site), *rest]) if part == "stages" else name


def assert_front(peer, wave, close):
    moved = dict(wave.network.front.named_buffers())
    for name, value in peer.front.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            assert_close(value, moved[name][0], close)


def assert_close(ours, theirs, close):
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


def test_the_work_of_a_step():
    """One front, one native pass, and of each lane stitch and tail: forward, and backward where the
    loss looks behind the site."""
    front, end = donor(0), donor(1)
    facts, batch = describe("resnet18", **MODEL), 4
    flops, head = [site.flops for site in facts.sites], facts.head.flops
    expected = 2 * sum(flops) + head
    cells, stitches = cells_and_stitches(front, end)
    for cell in cells:
        channels, height, width = facts.sites[cell.end_site - 1].shape
        product = 2 * facts.sites[cell.front_site - 1].shape[0] * channels * height * width
        tail = sum(flops[cell.end_site :])
        expected += 2 * product + tail * (1 if cell.method == "hint" else 2)
        expected += head * (2 if cell.method in ("slm", "tlm") else 1)
    peer = VmapPeer(front, end, lanes_of(cells, stitches), dtype=torch.float64)
    x, y = next(batches(batch=batch))
    assert flops_of(lambda: peer.step(x, y)) == batch * expected
