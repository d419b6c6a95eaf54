"""Each donor of a stitch sees the same images in its own way: size, cut, mean and std."""

import pytest
import torch
from torch.nn.functional import conv2d, interpolate

from fula_fast import sweep
from fula_fast.donors.obtain import open_source
from fula_fast.models import content_hash, load_checkpoint
from fula_fast.study.donor_spec import DataSpec

pytestmark = pytest.mark.usefixtures("without_plots")

DATA = {"source": "digits", "size": 16, "train_images": 200, "test_images": 60}
DONOR = {"model": "resnet18", "width": 4, "epochs": 1, "batch_size": 50}
SMALL = {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7]}
LARGE = {"size": 24, "resize": 28, "interpolation": "bicubic", "mean": 0.5, "std": 0.25}


def spec(front=SMALL, end=LARGE, grid=None, data=None, **protocol) -> dict:
    donors = {"a": dict(DONOR), "b": {**DONOR, "seed": 1}}
    for donor, given in zip(donors.values(), (front, end), strict=True):
        donor |= {"input": given} if given else {}
    usual = {"front": "a", "end": "b", "sites": [[3, 5]], "methods": ["fula", "tlm"]}
    return {
        "data": DATA | (data or {}),
        "donors": donors,
        "grid": usual | (grid or {}),
        "protocol": {"epochs": 1, "batch_size": 50, "dm_samples": 50} | protocol,
        "engine": {"precision": "fp32", "device": "cpu"},
    }


def run(asked, tmp_path, name="run"):
    return sweep(asked, tmp_path / name, quiet=True, donors=tmp_path / "donors")


def stored(tmp_path) -> dict:
    donors = map(load_checkpoint, (tmp_path / "donors").glob("*.safetensors"))
    return {content_hash(staged): staged.eval() for staged in donors}


def small(x):
    """SMALL, written out."""
    mean, std = (torch.tensor(v)[:, None, None] for v in SMALL.values())
    return (x - mean) / std


def large(x):
    """LARGE, written out."""
    x = interpolate(x, (28, 28), mode="bicubic", antialias=True, align_corners=False)
    return (x.clamp(0, 1)[:, :, 2:26, 2:26] - 0.5) / 0.25


def images_and_labels():
    images = open_source(DataSpec(**DATA)).test
    return torch.from_numpy(images.images).permute(0, 3, 1, 2) / 255, torch.tensor(images.labels)


@torch.no_grad()
def by_hand(row, state, statistics, donors, front_input, end_input):
    """Accuracy and the term at the stitch of a cell, in plain PyTorch from what is stored."""
    front, end = donors[row["front_hash"]], donors[row["end_hash"]]
    x, y = images_and_labels()
    own = end.head(end.run(end_input(x)))
    target = end.run(end_input(x), 0, row["end_site"])
    for part, staged in (("front", front), ("tail", end)):
        moved = {n.partition(".")[2]: t for n, t in statistics.items() if n.startswith(part)}
        staged.load_state_dict(moved, strict=False)
    h = front.run(front_input(x), 0, row["front_site"])
    weight, bias = state["weight"], state["bias"]
    h = conv2d(h, weight.reshape(*weight.shape[:2], 1, 1), bias)
    if h.shape[2:] != target.shape[2:]:
        h = interpolate(h, target.shape[2:], mode="bilinear", align_corners=False)
    logits = end.head(end.run(h, row["end_site"]))
    answers, soft = logits.argmax(1), (logits.softmax(1), own.softmax(1))
    return {
        "accuracy": float((answers == y).double().mean()),
        "agreement_top1": float((answers == own.argmax(1)).double().mean()),
        "term_stitch": float((h - target).norm() / target.norm()),
    }, soft


@pytest.mark.parametrize("executor", ["wave", "solo"])
def test_a_cell_by_hand_with_both_preparations(tmp_path, executor):
    asked = spec()
    asked["engine"]["executor"] = executor
    found = run(asked, tmp_path)
    from fula_fast.store import Store

    store = Store.open(found.folder)
    for row in found.rows:
        cell = row["cell"]
        ours, _ = by_hand(
            row, store.stitch(cell), store.statistics(cell), stored(tmp_path), small, large
        )
        for name, value in ours.items():
            assert row[name] == pytest.approx(value, abs=1e-5), name
        x, y = images_and_labels()
        right = (found.model(cell)(x).argmax(1) == y).double().mean()
        assert row["accuracy"] == pytest.approx(float(right), abs=1e-9)
