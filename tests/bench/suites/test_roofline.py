"""The GPU step's budget: what it may dispatch and move, counted without a GPU; and the model's own
arithmetic, against figures worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fula_fast import kernels
from fula_fast.bench.harness.roofline import H100, Counter, by_part, cost, size, total
from fula_fast.bench.harness.workload import Setting
from fula_fast.bench.suites.roofline import (
    break_even,
    dispatched,
    last_line,
    measure,
    saved,
    with_and_without,
)
from fula_fast.engine import fused_blocks
from fula_fast.kernels import backend

ZERO = {"device": "meta", "dtype": torch.bfloat16}


def setting(lanes: int) -> Setting:
    """ResNet-18 at full width, as on a GPU."""
    return Setting("cuda", "bf16", width=64, batch=128, lanes=lanes, timed=1, warmup=1)


def slices(costs) -> float:
    """Bytes of large slices' gradients: each writes a tensor whole for a part of it."""
    found = by_part(costs)
    return found["slice backward"].bytes if "slice backward" in found else 0.0


@pytest.mark.parametrize(
    ("attack", "full", "dispatches", "gigabytes"),
    [
        ("none", False, 440, 24.7),
        ("none", True, 560, 28.0),
        ("pgd", False, 440, 111.0),
        ("apgd", False, 220, 10.5),
    ],
)
def test_a_small_grid_keeps_to_its_budget(attack, full, dispatches, gigabytes):
    costs = measure(setting(36), attack, full)
    found = total(costs)
    assert 100 < found.dispatches <= dispatches
    assert 5e9 < found.bytes <= gigabytes * 1e9
    if attack == "none":
        assert slices(costs) == 0


@pytest.mark.parametrize(
    ("full", "gigabytes", "milliseconds"), [(False, 207, 118), (True, 232, 134)]
)
@pytest.mark.slow
def test_the_whole_grid_keeps_to_its_budget(full, gigabytes, milliseconds):
    costs = measure(setting(324), full=full)
    found = total(costs)
    assert found.dispatches <= 1000
    assert found.bytes <= gigabytes * 1e9
    assert found.seconds <= milliseconds * 1e-3
    assert slices(costs) == 0


@pytest.mark.slow
def test_fused_blocks_reach_the_goals_of_the_whole_grid():
    with fused_blocks.using(True):
        found = total(measure(setting(324)))
    assert found.seconds <= 92e-3
    assert found.bytes <= 138e9
    assert found.dispatches <= 1000


def test_fused_blocks_move_a_third_less():
    """Statistics come with what a convolution writes: a pass over a map less for every norm. An
    inner norm writes none each way, a shortcut's neither; a sum of branches is added where one of
    their gradients is written, and the sum that ends a block has one gradient instead of two."""
    with fused_blocks.using(True):
        operators = dispatched(setting(36))
    fused, plain = total([cost(op) for op in operators]), total(measure(setting(36)))
    assert fused.flops == plain.flops
    assert fused.bytes <= 0.68 * plain.bytes
    share = break_even(operators, plain.seconds)
    assert 0.5 < share < H100.fused
    slow = replace(H100, fused=share)
    assert total([cost(op, slow) for op in operators]).seconds == pytest.approx(
        plain.seconds, rel=5e-3
    )


def test_both_kinds_of_blocks_stand_side_by_side():
    found = with_and_without(setting(36))
    assert found["plain"] == last_line(total(measure(setting(36))))
    assert found["plain"] != found["fused"] and found["share"] == H100.fused


def test_the_end_of_a_block_moves_each_map_once():
    x, side = (torch.empty(64, c, 8, 8, **ZERO, requires_grad=True) for c in (32, 16))
    w, w2 = torch.empty(32, 32, 3, 3, **ZERO), torch.empty(32, 16, 1, 1, **ZERO)
    norm = [torch.empty(32, device="meta") for _ in range(4)]
    target = torch.empty(32, 32, 8, 8, **ZERO)

    def step():
        shortcut = kernels.Projection(w2, 1, 0, kernels.Affine(*norm[2:], 1e-5))
        end = {"norm": kernels.Affine(*norm[:2], 1e-5), "residual": side, "projection": shortcut}
        z, dist2, _ = kernels.lane_conv_norm(x, w, lanes=2, padding=1, **end, target=target)
        torch.autograd.backward([z, dist2], [torch.empty_like(z), torch.empty_like(dist2)])

    with backend.using("triton"):
        found = by_part(counted(step))["lane_norm"]
    assert found.dispatches == 2
    assert found.bytes == (3 + 4) * size(x)  # x, residual, z; dz, x, residual, d


def test_a_fused_convolution_moves_each_map_once():
    x = torch.empty(64, 128, 8, 8, **ZERO).contiguous(memory_format=torch.channels_last)
    w = torch.empty(128, 128, 3, 3, **ZERO)
    with backend.using("triton"):
        (found,) = counted(lambda: kernels.lane_conv(x, w, lanes=2, padding=1))
    sums = 64 * 64 // 128 * 2 * 128 * 4  # of a tile of 128 rows, float32
    assert found.bytes == 2 * size(x) + size(w) + 2 * sums
    assert found.flops == 2 * 64 * 64 * 128 * 128 * 9
    assert found.seconds == pytest.approx(
        found.flops / (H100.fused * H100.convolutions[128]) + 2 * H100.launch
    )


def counted(step):
    with Counter() as counter:
        step()
    return [cost(op) for op in counter.operators]


def test_a_sum_is_bound_by_memory():
    a, b = (torch.empty(1 << 26, **ZERO) for _ in range(2))
    (found,) = counted(lambda: a + b)
    assert found.bytes == 3 * 2 * 2**26
    assert found.seconds == pytest.approx(3 * 2 * 2**26 / H100.memory + H100.launch)


def test_a_convolution_is_bound_by_its_rate():
    x = torch.empty(4096, 256, 8, 8, **ZERO).contiguous(memory_format=torch.channels_last)
    w = torch.empty(256, 256, 3, 3, **ZERO)
    (found,) = counted(lambda: torch.conv2d(x, w, padding=1))
    assert found.flops == 2 * 4096 * 64 * 256 * 256 * 9
    assert found.seconds == pytest.approx(found.flops / H100.convolutions[256] + H100.launch)


def test_views_cost_nothing_and_expanded_axes_count_once():
    x = torch.empty(8, 4, **ZERO)
    assert not counted(lambda: x.view(4, 8)[1:].t())
    assert size(x[:, None].expand(8, 100, 4)) == 64


def test_what_is_only_overwritten_is_not_read():
    a, b = (torch.empty(1 << 20, **ZERO) for _ in range(2))
    (found,) = counted(lambda: a.copy_(b))
    assert found.bytes == 2 * 2 * 2**20


def test_a_fused_chain_is_one_operator():
    a = torch.empty(1 << 20, **ZERO)
    counter = Counter()
    step = counter.fuse(lambda t: t.mul_(2).add_(1))
    with counter:
        step(a)
    (op,) = counter.operators
    assert cost(op).bytes == 2 * 2 * 2**20


def test_the_last_line_says_all():
    a = torch.empty(1 << 26, **ZERO)
    line = last_line(total(counted(lambda: (a + a, a @ a))))
    assert line.startswith("modelled 0.") and line.endswith("2 dispatches, 0.7 GB")


def test_before_and_after_stand_side_by_side(tmp_path):
    row = {"attack": "none", "phase": "short", "setting": {"lanes": 36}}
    path = tmp_path / "roofline.json"
    for side in ("before", "after"):
        saved(path, row | {"line": side}, side)
    (found,) = json.loads(path.read_text())["rows"].values()
    assert [found[side]["line"] for side in ("before", "after")] == ["before", "after"]
