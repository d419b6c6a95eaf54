"""Normalisation layers of many kinds: lanes compute what a lone cell does, or say that they cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fula_fast import stages
from fula_fast.engine.solo import SoloCell
from fula_fast.engine.task import WaveTask, stitches_of
from fula_fast.engine.wave import Wave
from fula_fast.errors import FulaError
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

layers = pytest.importorskip("timm.layers")

STEPS, BATCH, CLASSES = 3, 6, 5


class Voxels(nn.Module):
    """A batch norm over (N, C, D, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(2)

    def forward(self, x):
        return self.norm(x.unflatten(1, (2, 4))).flatten(1, 2)


class Rows(nn.Module):
    """A batch norm over (N, C, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x.flatten(2)).view_as(x)


KINDS = {
    "act-relu": lambda: layers.BatchNormAct2d(8),
    "act-silu": lambda: layers.BatchNormAct2d(8, act_layer=nn.SiLU),
    "act-none": lambda: layers.BatchNormAct2d(8, apply_act=False),
    "act-drop": lambda: layers.BatchNormAct2d(8, drop_layer=lambda: nn.Dropout(0.5)),
    "1d": Rows,
    "2d": lambda: nn.BatchNorm2d(8),
    "3d": Voxels,
    "group": lambda: nn.GroupNorm(2, 8),
    "layer": lambda: nn.LayerNorm([8, 8, 8]),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
}


def network(make, seed: int):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), make()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), make()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), make()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
    )
    for name, value in net.named_buffers():  # statistics that matter
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.uniform_(-0.5, 0.5)
    model = stages(
        net, sites=["0", "1", "2"], input_shape=(3, 8, 8), num_classes=CLASSES, channels="first"
    )
    return model.double().eval()


def batches():
    rng = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        yield (
            torch.rand(BATCH, 3, 8, 8, generator=rng, dtype=torch.float64),
            torch.randint(CLASSES, (BATCH,), generator=rng),
        )


def cells():
    rule = protocol("fula-v2", lr=1e-2)
    grid = [
        (1, 1, {"fula": 1.0}),
        (2, 1, {"tlm": 1.0}),
        (3, 2, {"hint": 1.0}),
        (1, 3, {"slm": 1.0}),
    ]
    return [Cell("a", "b", i, j, "m", o, rule, id=str(n)) for n, (i, j, o) in enumerate(grid)]


def start(cell, front, end):
    shapes = front.site_shapes[cell.front_site - 1], end.site_shapes[cell.end_site - 1]
    return new_stitch(*shapes, cell.protocol).double().initialise("random", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_equal_lone_cells(kind):
    front, end = network(KINDS[kind], 0), network(KINDS[kind], 1)
    wave = Wave(
        cells(), front, end, {c.id: start(c, front, end) for c in cells()}, STEPS,
        dtype=torch.float64,
    )  # fmt: skip
    for number, (x, y) in enumerate(batches()):
        wave.step(x, y, number)
    for number, lane in enumerate(wave.lanes):
        cell = lane.cell
        solo = SoloCell(
            front, end, cell.front_site, cell.end_site, cell.objective, cell.protocol,
            start(cell, front, end), STEPS,
        )  # fmt: skip
        losses = [solo.step(x, y).loss for x, y in batches()]
        assert float(wave.loss[number]) == pytest.approx(losses[-1], rel=1e-9)
        for name, theirs in solo.model.stitch.state_dict().items():
            torch.testing.assert_close(
                wave.bank.lane_state(number)[name], theirs, rtol=1e-9, atol=1e-9
            )
        x = next(batches())[0]
        solo.model.eval()
        with torch.no_grad():
            theirs, ours = solo.model(x), wave.logits(x, [number])
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


class Louder(nn.BatchNorm2d):
    """A batch norm that does more than its base class."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [Louder, nn.SyncBatchNorm], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("role", ["front", "end"])
def test_other_batch_norms_are_refused_by_layer(kind, role):
    known, other = network(KINDS["2d"], 0), network(lambda: kind(8), 1)
    donors = (other, known) if role == "front" else (known, other)
    task = WaveTask(cells(), *donors, None, lambda samples: torch.zeros(0), {}, 0)
    with pytest.raises(FulaError) as error:
        stitches_of(task)
    assert "\n" not in str(error.value)
    assert f"of {role}" in str(error.value) and f"is a {kind.__name__}" in str(error.value)
    assert "layer '" in str(error.value)
