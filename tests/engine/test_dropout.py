"""`dropout = "train"`: keyed masks, the same for a lane and for its cell; off in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fula_fast.engine.dropout import Key, KeyedDropout, set_key, use_keyed_dropout
from fula_fast.engine.solo import SoloCell
from fula_fast.engine.wave import Wave
from fula_fast.errors import FulaError
from fula_fast.models import stages
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

BATCH, STEPS = 6, 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.b = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.c = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x):
        return self.out(self.drop(self.flat(self.pool(self.c(self.b(self.a(x)))))))


def donor(seed: int):
    torch.manual_seed(seed)
    return stages(Net(), ["a", "b", "c"], input_shape=(3, 8, 8), num_classes=5).double().eval()


def cell(number, i, j, method):
    rule = protocol("fula-v2", dropout="train")
    return Cell(
        "a", "b", i, j, method, {method: 1.0}, rule, seed=number, data_seed=7, id=str(number)
    )


def batches():
    rng = torch.Generator().manual_seed(5)
    for step in range(STEPS):
        x = torch.rand(BATCH, 3, 8, 8, generator=rng, dtype=torch.float64)
        yield x, torch.randint(5, (BATCH,), generator=rng), torch.arange(BATCH) + BATCH * step


def stitch_of(c, front, end):
    shapes = front.site_shapes[c.front_site - 1], end.site_shapes[c.end_site - 1]
    return new_stitch(*shapes, c.protocol).double().initialise("random", c.seed)


def test_lanes_equal_their_cells():
    front, end = donor(0), donor(1)
    cells = [
        cell(0, 1, 1, "fula"),
        cell(1, 2, 2, "tlm"),
        cell(2, 3, 1, "slm"),
        cell(3, 2, 3, "hint"),
    ]
    wave = Wave(
        cells, front, end, {c.id: stitch_of(c, front, end) for c in cells}, STEPS,
        dtype=torch.float64,
    )  # fmt: skip
    for number, (x, y, index) in enumerate(batches()):
        wave.key_dropout(0, index)
        wave.step(x, y, number)
    for number, lane in enumerate(wave.lanes):
        c = lane.cell
        solo = SoloCell(
            front, end, c.front_site, c.end_site, c.objective, c.protocol,
            stitch_of(c, front, end), STEPS,
        )  # fmt: skip
        for x, y, index in batches():
            last = solo.step(x, y, masks=Key(7, 0, index))
        assert float(wave.loss[number]) == pytest.approx(last.loss, rel=1e-9)
        for name, value in solo.model.stitch.state_dict().items():
            ours = wave.bank.lane_state(number)[name]
            torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-9)


def test_masks_drop_the_right_share_and_keep_the_mean():
    layer = KeyedDropout(0.3, purpose=1)
    x = torch.ones(2 * 50, 400)  # two lanes of fifty images
    assert torch.equal(layer(x), x)
    layer.key = Key(1, 0, torch.arange(50))
    first = layer(x)
    assert torch.equal(first[:50], first[50:])
    assert float((first == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(first.max()) == pytest.approx(1 / 0.7)
    layer.key = Key(1, 1, torch.arange(50))
    assert not torch.equal(layer(x), first)
    layer.key = Key(1, 0, torch.arange(49, -1, -1))  # masks go with the image, not with its place
    assert torch.equal(layer(x)[:50].flip(0), first[:50])


def test_other_kinds_of_dropout_are_refused():
    with pytest.raises(FulaError, match="knows nn.Dropout, not Dropout2d"):
        use_keyed_dropout(nn.Sequential(nn.Dropout2d(0.1)), "front")


def test_masks_differ_between_layers_and_passes():
    models = [nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)) for _ in range(2)]
    for model, which in zip(models, ("front", "tail"), strict=True):
        use_keyed_dropout(model, which)
        set_key(model, Key(0, 0, torch.arange(8)))
    x = torch.ones(8, 64)
    outputs = [layer(x) for model in models for layer in model]
    for i, first in enumerate(outputs):
        assert all(not torch.equal(first, other) for other in outputs[i + 1 :])
