"""FuLA with the soft labels as one more term (`fula_soft`), against the formula written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fula_fast
from fula_fast.engine.solo import SoloCell
from fula_fast.methods import with_soft_term
from fula_fast.models import build, save_checkpoint
from fula_fast.stitching.stitch import Stitch
from fula_fast.study.protocol import protocol

QUICK = {"epochs": 1, "dm_samples": 60, "crop_padding": 1, "flip": False, "batch_size": 256}


def donor(seed):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4).eval()


@pytest.fixture(scope="module")
def donors():
    return donor(0), donor(1)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(front, end, stitch, x, kept):
    """mean(term_5 … of the first `kept` sites, KL) with the end's site 5, in eval mode: NumPy."""
    with torch.no_grad():
        h, g = stitch(front.run(x, 0, 3)), end.run(x, 0, 5)
        parts = []
        for site in range(5, 10):
            if site > 5:
                h, g = end.run(h, site - 1, site), end.run(g, site - 1, site)
            a, b = h.numpy(), g.numpy()
            parts.append(np.sqrt(((a - b) ** 2).sum()) / np.sqrt((b**2).sum()))
        p, q = softmax(end.head(g).numpy()), softmax(end.head(h).numpy())
    divergence = (p * (np.log(p) - np.log(q))).sum() / len(p)
    return np.mean([*parts[:kept], divergence])


@pytest.mark.parametrize(("weighting", "kept"), [("uniform", 5), ("cutoff=1", 2)])
def test_the_loss_is_the_mean_of_the_terms_and_the_divergence(weighting, kept):
    front, end = (donor.double() for donor in (donor(0), donor(1)))
    torch.manual_seed(2)
    stitch = Stitch(front.site_shapes[2], end.site_shapes[4]).double()
    torch.nn.init.normal_(stitch.weight, 0, 0.3)
    x, y = torch.rand(16, 3, 8, 8, dtype=torch.float64), torch.zeros(16, dtype=torch.int64)
    expected = by_hand(front, end, stitch, x, kept)
    rule = protocol(bn="eval", weighting=weighting)
    weights = with_soft_term({"fula": 1.0}, weighting, 5)
    found = SoloCell(front, end, 3, 5, weights, rule, stitch, 1).step(x, y)
    assert found.loss == pytest.approx(expected, rel=1e-12)


def test_parts_of_a_mixture():
    assert with_soft_term({"tlm": 1.0}, "uniform", 3) == {"tlm": 1.0}
    assert with_soft_term({}, "uniform", 3) == {}
    found = with_soft_term({"fula": 0.4, "slm": 0.1, "tlm": 0.5}, (0.0, 3.0, 1.0), 3)
    assert found == pytest.approx({"fula": 0.4 * 2 / 3, "slm": 0.1 + 0.4 / 3, "tlm": 0.5})


def test_a_grid_with_and_without_it(donors, tmp_path, without_plots):
    """Lanes equal cells alone; a stitch by itself is the cell; methods without FuLA are merged."""
    for name, model in zip("ab", donors, strict=True):
        save_checkpoint(model, tmp_path / f"{name}.safetensors")
    tables = [
        fula_fast.sweep(
            {
                "data": {"source": "digits", "size": 8},
                "donors": {n: {"checkpoint": str(tmp_path / f"{n}.safetensors")} for n in "ab"},
                "grid": {
                    "front": "a", "end": "b", "sites": [[3, 5], [9, 9]],
                    "methods": ["hint", "fula"], "axes": {"fula_soft": [False, True]},
                },
                "protocol": QUICK,
                "engine": {"device": "cpu", "precision": "fp64", "executor": executor},
            },
            tmp_path / executor,
            quiet=True,
        )
        for executor in ("wave", "solo")
    ]  # fmt: skip
    assert len(tables[0]) == 6 and not tables[0].failed  # hint once a site
    for ours, theirs in zip(tables[0].rows, tables[1].rows, strict=True):
        assert ours["cell"] == theirs["cell"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
    soft, plain = (
        tables[0].select(method="fula", end_site=5, fula_soft=s)[0] for s in (True, False)
    )
    assert abs(soft["loss"] - plain["loss"]) > 1e-3
    alone = fula_fast.stitch(
        *donors, 3, 5, "digits", "fula", fula_soft=True, precision="fp64", quiet=True, **QUICK
    )
    assert alone.loss == pytest.approx(soft["loss"], rel=1e-9)
