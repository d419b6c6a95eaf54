"""Waves with every kind of lane, ready to train on any device."""

from __future__ import annotations

import numpy as np
import torch

from fula_fast.engine.task import WaveTask
from fula_fast.engine.wave import Wave
from fula_fast.models import build
from fula_fast.pipelines import Augmentation, ImageSet, open_stream
from fula_fast.progress import Progress
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import Attack, protocol

BATCH, STEPS, EPOCHS = 6, 3, 2
GRID = [
    (1, 1, {"fula": 1.0}),
    (3, 5, {"hint": 1.0}),
    (7, 3, {"slm": 1.0}),
    (4, 4, {"fula": 0.5, "tlm": 0.5}),
    (5, 5, {}),
    (9, 9, {"fula": 1.0}),
]


def donor(seed: int, momentum: float = 0.9):
    torch.manual_seed(seed)
    model = build("resnet18", num_classes=5, input_shape=(3, 8, 8), width=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum
    return model.eval()


def cells(alphas=(0.0,), **options):
    """Every kind of lane; scopes of norms and attacked shares in turn."""
    found = []
    for number, (i, j, objective) in enumerate(GRID):
        norm = ("batch", "sample")[number % 2]
        rule = protocol("fula-v2", batch_size=BATCH, norm=norm, **options)
        alpha = alphas[number % len(alphas)]
        found.append(
            Cell("a", "b", i, j, "m", objective, rule, alpha=alpha, seed=number, id=str(number))
        )
    return found


def attack(**options):
    return Attack(steps=3, eps=0.1, step=0.05, **options)


def stream(name: str, device: str):
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH * STEPS, 8, 8, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(len(pixels)) % 5, tuple("abcde"))
    return open_stream(
        images, batch_size=BATCH, seed=3, augmentation=Augmentation(1), backend=name, device=device
    )


def prepared(group, device="cpu", dtype="fp32", backend="resident", momentum=0.9, **options):
    """A task and its wave, anew at every call."""
    front, end = donor(0, momentum), donor(1, momentum)
    task = WaveTask(
        group, front, end, stream(backend, device), dm_images=None, evaluations={}, epochs=EPOCHS,
        device=torch.device(device), precision=dtype, progress=Progress(),
    )  # fmt: skip
    shapes = front.site_shapes, end.site_shapes
    start = {
        c.id: new_stitch(shapes[0][c.front_site - 1], shapes[1][c.end_site - 1], c.protocol)
        .double()
        .initialise("random", c.seed)
        for c in group
    }
    wave = Wave(group, front, end, start, task.steps, dtype=task.dtype, device=device, **options)
    return task, wave


def taken(stepper, first=0, start=0) -> list[int]:
    """All steps from step `start` of epoch `first` on."""
    numbers = []
    for epoch in range(first, EPOCHS):
        stepper.wave.start_epoch()
        numbers += stepper.epoch(epoch, start if epoch == first else 0)
    return numbers


def assert_same(ours: Wave, theirs: Wave) -> None:
    expected = theirs.state()
    for name, value in ours.state().items():
        assert torch.equal(value.nan_to_num(), expected[name].nan_to_num()), name


WAVES = {
    "clean": ((0.0,), {}),
    "attacked": ((0.0, 0.5, 1.0), {"attack": attack()}),
    "first": ((0.3,), {"attack": attack(norm="l2"), "share": "first", "attack_target": "clean"}),
    "random-start": ((0.5, 1.0), {"attack": attack(random_start=True)}),
}
