"""Every option says when it acts, and tells the truth: cells with equal ids compute equal numbers.

Cells are trained for real, in float64, on three-stage networks; what their ids leave out is changed
option by option.
"""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from fula_fast.engine.solo import run_cell
from fula_fast.engine.task import WaveTask, stitches_of
from fula_fast.methods import objective
from fula_fast.models.staged import Staged
from fula_fast.pipelines import ImageSet
from fula_fast.runs.cell_images import CellImages
from fula_fast.study.cell import Cell, Context, cell_id
from fula_fast.study.protocol import Protocol, acts, protocol

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient of exactly")  # tiny nets saturate

CONTEXT = Context("f", "e", "d", classes=3, like=True)
SHORT = {
    "epochs": 2,
    "batch_size": 8,
    "crop_padding": 1,
    "attack": {"eps": 0.1, "step": 0.05, "steps": 2},
}
BASES = {
    "dm": {},
    "dm stale": {"dm_stats": "stale"},
    "dm stale eval": {"dm_stats": "stale", "bn": "eval"},
    "dm eval": {"bn": "eval"},
    "dm attacked": {"alpha": 0.5},
    "dm robust": {"robust": "pgd-2"},
    "hint": {},
    "hint random": {"init": "random"},
    "hint identity sgd": {"init": "identity", "optimiser": "sgd"},
    "hint robust": {"robust": "pgd-2"},
    "hint robust stages": {"robust": "apgd20"},
    "hint attacked": {"alpha": 1.0},
    "slm": {},
    "tlm": {},
    "tlm attacked": {"alpha": 0.5, "bn": "eval"},
    "fula": {},
    "fula sgd": {"optimiser": "sgd"},
    "fula attacked": {"alpha": 0.5},
    "fula random robust": {"init": "random", "robust": "pgd-2", "alpha": 1.0},
}
OTHER = {
    "preset": ["another"],
    "optimiser": ["sgd", "adam"],
    "lr": [0.3],
    "momentum": [0.1],
    "weight_decay": [0.5],
    "schedule": ["constant"],
    "epochs": [1],
    "batch_size": [6],
    "init": ["random", "identity", "dm"],
    "dm_samples": [5],
    "dm_rcond": [0.5],
    "dm_stats": ["stale", "refreshed"],
    "hook": ["pre_relu"],
    "bn": ["eval", "train"],
    "target_bn": ["eval", "train"],
    "dropout": ["train"],
    "stitch_bn": ["both"],
    "stitch_bias": [False],
    "norm": ["sample"],
    "weighting": ["last", "cutoff=0", (1.0, 3.0)],
    "fula_soft": [True],
    "crop_padding": [0],
    "flip": [False],
    "share": ["first"],
    "attack": [
        {"eps": 0.3, "step": 0.05, "steps": 2},
        {"eps": 0.1, "step": 0.01, "steps": 2},
        {"eps": 0.1, "step": 0.05, "steps": 1},
        {"eps": 0.1, "step": 0.05, "steps": 2, "norm": "l2"},
        {"eps": 0.1, "step": 0.05, "steps": 2, "random_start": True},
    ],
    "attack_target": ["clean"],
    "robust": ["pgd-1", "apgd20", "none"],
    "stitch_data": ["sender"],
}
OUTSIDE = {"preset", "hook", "stitch_data", "fula_soft"}
"""Options that nothing reads (a name), that are read where donors are cut and data is opened, or
that stand in the objective."""


@cache
def donor(seed: int) -> Staged:
    """Not traced: a test copies it a thousand times."""
    torch.manual_seed(seed)

    def stage(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]

    chains = [stage(3), [*stage(4), nn.Dropout(0.5)], [*stage(4), nn.MaxPool2d(2)]]
    net = Staged(
        [nn.Sequential(*chain) for chain in chains],
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
        name="tiny", num_classes=3, input_shape=(3, 4, 4), site_names=("0", "1", "2"),
    )  # fmt: skip
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean, 0, 0.2)
    return net.eval()


@cache
def images(seed: int, count: int) -> ImageSet:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return ImageSet(pixels, random.integers(0, 3, count), tuple("abc"))


def cell_of(name: str, **changes) -> Cell:
    method, options = name.split()[0], {**SHORT, **BASES[name], **changes}
    alpha = options.pop("alpha", 0.0)
    rule = Protocol.model_validate(protocol().model_dump() | options)
    return Cell("a", "b", 2, 2, method, objective(method), rule, alpha=alpha, id="x")


@cache
def _numbers(cell: Cell, rule: Protocol, alpha: float) -> dict[str, float]:
    data = CellImages(cell, images(0, 16), images(1, 8), None, None, torch.device("cpu"))
    front, end = (copy.deepcopy(donor(seed)) for seed in (0, 1))
    task = WaveTask(
        (cell,), front, end, data.stream() if cell.trains else None, data.closed_form,
        {"test": data.tests()}, cell.protocol.epochs, precision="fp64",
        measures=("terms", "r2", "penultimate"),
    )  # fmt: skip
    start = stitches_of(task)[cell.id]
    outcome, _ = run_cell(task, cell, start, front.double(), end.double())
    assert not outcome.error, outcome.error
    left = ("train_seconds",)
    found = {
        name: value
        for name, value in outcome.metrics.items()
        if name not in left and not isinstance(value, str)
    }
    return found | {f"stitch.{n}": t.flatten().tolist() for n, t in outcome.tensors.items()}


def numbers(cell: Cell) -> dict[str, float]:
    """All numbers of the cell."""
    return _numbers(cell, cell.protocol, cell.alpha)


def differ(one: dict, other: dict) -> list[str]:
    """Names of numbers that differ by more than rounding: a closed form is float32, in batches."""
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [
        name
        for name, value in one.items()
        if (value is None) != (other[name] is None)
        or (value is not None and not np.allclose(value, other[name], rtol=1e-5, atol=1e-7))
    ]


def changes_of(option: str):
    """(base, changed) cells for every base and every other value of the option."""
    for name in BASES:
        base = cell_of(name)
        for value in OTHER[option]:
            extra = {"stitch_bn": "both"} if option == "stitch_bias" else {}
            start = cell_of(name, **extra)
            changed = cell_of(name, **extra, **{option: value})
            if changed.protocol != start.protocol:
                yield (start if extra else base), changed


def test_every_option_declares_when_it_acts():
    assert set(OTHER) == set(Protocol.model_fields)
    assert all(acts(option) for option in Protocol.model_fields)


@pytest.mark.parametrize("option", [o for o in OTHER if o not in OUTSIDE])
def test_changing_an_option_changes_the_id_or_no_number(option):
    shown = False
    for base, changed in changes_of(option):
        if cell_id(base, CONTEXT) == cell_id(changed, CONTEXT):
            assert differ(numbers(base), numbers(changed)) == [], (base, changed)
        else:
            shown = shown or bool(differ(numbers(base), numbers(changed)))
    assert shown, f"{option} changes no number in any situation here: the test says nothing of it"


def test_a_name_of_options_acts_never_and_data_always():
    assert not acts("preset").when(None)
    assert acts("hook").when(None) and acts("stitch_data").when(None)
