"""Attacked lanes equal their solo cells; packed lanes equal their stitched models."""

from __future__ import annotations

import pytest
import torch

from fula_fast.attacks import pgd
from fula_fast.cell import Cell
from fula_fast.engine.packed import PackedWave
from fula_fast.engine.wave import Wave
from fula_fast.initial import new_stitch
from fula_fast.models import build
from fula_fast.pipelines import Batch
from fula_fast.protocol import Attack, protocol
from fula_fast.solo import SoloCell
from fula_fast.task import attacked_mask

STEPS, BATCH = 5, 6


def donor(seed: int):
    torch.manual_seed(seed)
    model = build("resnet18", num_classes=5, input_shape=(3, 8, 8), width=4)
    return model.double().eval()


def batches():
    rng = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        x = torch.rand(BATCH, 3, 8, 8, generator=rng, dtype=torch.float64)
        yield Batch(x, torch.randint(5, (BATCH,), generator=rng), torch.arange(BATCH))


def cells(**options):
    grid = [
        (1, 1, {"fula": 1.0}, 0.5),
        (3, 5, {"hint": 1.0}, 1.0),
        (3, 5, {"hint": 1.0}, 0.5),
        (7, 3, {"slm": 1.0}, 1.0),
        (2, 2, {"tlm": 1.0}, 0.5),
        (9, 9, {"fula": 1.0}, 1.0),
        (5, 5, {}, 1.0),
    ]
    rule = protocol("fula-v2", attack=Attack(steps=10), **options)
    return [
        Cell("a", "b", i, j, "m", objective, rule, alpha=alpha, seed=n, id=str(n))
        for n, (i, j, objective, alpha) in enumerate(grid)
    ]


def stitch_of(cell, front, end):
    shapes = front.site_shapes[cell.front_site - 1], end.site_shapes[cell.end_site - 1]
    return new_stitch(*shapes, cell.protocol).double().initialise("random", cell.seed)


def trained(group, front, end):
    start = {c.id: stitch_of(c, front, end) for c in group}
    wave = Wave(group, front, end, start, STEPS, dtype=torch.float64)
    for number, batch in enumerate(batches()):
        wave.step(batch.images, batch.labels, number, wave.attack(batch, 0, number))
    return wave


def solo_of(cell, front, end):
    solo = SoloCell(
        front, end, cell.front_site, cell.end_site, cell.objective, cell.protocol,
        stitch_of(cell, front, end), STEPS,
        attacker=lambda model, x, y: pgd(model, x, y, cell.protocol.attack),
    )  # fmt: skip
    for number, batch in enumerate(batches()):
        mask = attacked_mask(cell, 0, number, BATCH)
        solo.step(batch.images, batch.labels, mask)
    return solo


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="v2"),
        pytest.param({"share": "first", "attack_target": "clean"}, id="first-clean"),
        pytest.param({"bn": "eval"}, id="eval", marks=pytest.mark.slow),
    ],
)
def test_an_attacked_lane_equals_its_cell(options):
    pair = donor(0), donor(1)
    wave = trained(cells(**options), *pair)
    for number, lane in enumerate(wave.lanes):
        solo = solo_of(lane.cell, *pair)
        ours = wave.bank.lane_state(number)
        for name, theirs in solo.model.stitch.state_dict().items():
            torch.testing.assert_close(ours[name], theirs, rtol=1e-9, atol=1e-9)
        for name, value in wave.network.tail.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                theirs = dict(solo.model.tail.named_buffers())[name]
                torch.testing.assert_close(value[number], theirs, rtol=1e-9, atol=1e-9)


def test_packed_lanes_give_each_models_logits_and_gradients():
    pair = donor(0), donor(1)
    group = cells()[:5]
    wave = trained(group, *pair)
    packed = PackedWave(wave, list(range(len(wave.lanes))))
    lane = torch.tensor([4, 0, 2, 2, 1, 3, 0])
    x = torch.rand(len(lane), 3, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = packed.logits(x, lane)
    (grad,) = torch.autograd.grad(logits[:, 1].sum(), x)
    for place, number in enumerate(lane.tolist()):
        solo = solo_of(wave.lanes[number].cell, *pair)
        solo.model.eval()
        one = x[place : place + 1].detach().requires_grad_()
        expected = solo.model(one)
        torch.testing.assert_close(logits[place : place + 1], expected.float())
        (own,) = torch.autograd.grad(expected[:, 1].sum(), one)
        torch.testing.assert_close(grad[place : place + 1], own, rtol=1e-5, atol=1e-8)
