"""The published implementation's figures, reproduced by the solo executor in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fula_fast.engine.solo import SoloCell
from fula_fast.engine.wave import Wave
from fula_fast.models import batchnorm
from fula_fast.stitching.closed_form import solve
from fula_fast.stitching.starts import activations, initial_stitches
from fula_fast.stitching.stitch import Stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

PAIRS = [(3, 3), (7, 3)]


def _cell(golden, front_site, end_site, method):
    front, end = golden.donors()
    stitch = Stitch(front.site_shapes[front_site - 1], end.site_shapes[end_site - 1]).double()
    pair = f"{front_site}_{end_site}"
    stitch.assign(golden.initial[f"w_{pair}"], golden.initial[f"b_{pair}"])
    rule = protocol("fula-v1", batch_size=32)
    return SoloCell(front, end, front_site, end_site, {method: 1.0}, rule, stitch, steps=8)


ALONE = [
    # in CI one cell to its end, and all as lanes of one wave for two steps
    pytest.param(
        *pair, method, marks=pytest.mark.long if (pair, method) != ((7, 3), "fula") else ()
    )
    for pair in PAIRS
    for method in ("fula", "hint", "slm", "tlm")
]


@pytest.mark.slow
@pytest.mark.parametrize(("front_site", "end_site", "method"), ALONE)
def test_every_published_figure(golden, front_site, end_site, method):
    cell = _cell(golden, front_site, end_site, method)
    case = golden.case(front_site, end_site, method)
    images, labels = golden.images.double(), golden.labels
    for step in range(8):
        batch = slice(32 * step, 32 * step + 32)
        result = cell.step(images[batch], labels[batch])
        ours = [result.values[name] for name in ("fula", "hint", "slm", "tlm")]
        np.testing.assert_allclose(ours, case["losses_fula_hint_slm_tlm"][step], rtol=1e-6)
        np.testing.assert_allclose(result.terms, case["terms"][step], rtol=1e-6)
    _compare_end_state(cell, case, golden)


@pytest.mark.parametrize(
    "steps", [pytest.param(2, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.long)]
)
def test_lanes_of_one_wave_reach_every_published_figure(golden, steps):
    """All eight published cases as lanes of a single wave; after eight steps their end states."""
    front, end = golden.donors()
    rule = protocol("fula-v1", batch_size=32)
    cells = [
        Cell("a", "b", i, j, m, {m: 1.0}, rule, id=f"{i}_{j}_{m}")
        for i, j in PAIRS
        for m in ("fula", "hint", "slm", "tlm")
    ]
    start = {c.id: _cell(golden, c.front_site, c.end_site, c.method).model.stitch for c in cells}
    wave = Wave(cells, front, end, start, 8, dtype=torch.float64)
    methods = ["fula", "hint", "slm", "tlm"]
    for step in range(steps):
        batch = slice(32 * step, 32 * step + 32)
        wave.step(golden.images[batch].double(), golden.labels[batch], step)
        for number, lane in enumerate(wave.lanes):
            c = lane.cell
            losses = golden.case(c.front_site, c.end_site, c.method)["losses_fula_hint_slm_tlm"]
            expected = losses[step][methods.index(c.method)]
            np.testing.assert_allclose(float(wave.loss[number]), expected, rtol=1e-6)
    for number, lane in enumerate(wave.lanes if steps == 8 else ()):
        case = golden.case(lane.front_site, lane.end_site, lane.cell.method)
        state = wave.bank.lane_state(number)
        close = {"rtol": 1e-6, "atol": 1e-9}
        np.testing.assert_allclose(state["weight"].flatten()[: len(case["w"])], case["w"], **close)
        np.testing.assert_allclose(state["bias"][: len(case["b"])], case["b"], **close)
        norm = dict(wave.network.tail.named_modules())["stages.8.layer4.1.bn2"]
        for key, stored in (("mean", norm.running_mean), ("var", norm.running_var)):
            expected = case[f"end_last_bn_{key}"]
            np.testing.assert_allclose(stored[number, : len(expected)], expected, **close)


def _compare_end_state(cell, case, golden):
    weight = cell.model.stitch.weight.detach()
    start = torch.as_tensor(golden.initial[f"w_{case['front_site']}_{case['end_site']}"]).double()
    close = {"rtol": 1e-6, "atol": 1e-9}
    np.testing.assert_allclose(weight.flatten()[: len(case["w"])], case["w"], **close)
    np.testing.assert_allclose(weight.norm(), case["w_norm"], **close)
    np.testing.assert_allclose((weight - start).norm(), case["dw_norm"], **close)
    np.testing.assert_allclose(
        cell.model.stitch.bias.detach()[: len(case["b"])], case["b"], **close
    )
    front_norm = cell.model.front.state()["bn1.running_mean"]
    np.testing.assert_allclose(
        front_norm[: len(case["front_bn1_mean"])], case["front_bn1_mean"], **close
    )
    tail = cell.model.tail.state()
    for key, name in (("mean", "running_mean"), ("var", "running_var")):
        expected = case[f"end_last_bn_{key}"]
        ours = tail[f"layer4.1.bn2.{name}"][: len(expected)]
        np.testing.assert_allclose(ours, expected, **close)
    batchnorm.set_rule(cell.model, "running")
    with torch.no_grad():
        logits = cell.model(golden.images[256:456].double())
    np.testing.assert_allclose(logits[:4], case["logits"], rtol=1e-6, atol=1e-8)
    accuracy = (logits.argmax(1) == golden.labels[256:456]).double().mean()
    assert float(accuracy) == case["accuracy"]


def test_first_published_step(golden):
    """The quick version of the above: one step of one case."""
    cell = _cell(golden, 3, 3, "fula")
    case = golden.case(3, 3, "fula")
    result = cell.step(golden.images[:32].double(), golden.labels[:32])
    np.testing.assert_allclose(result.terms, case["terms"][0], rtol=1e-6)
    ours = [result.values[name] for name in ("fula", "hint", "slm", "tlm")]
    np.testing.assert_allclose(ours, case["losses_fula_hint_slm_tlm"][0], rtol=1e-6)


@pytest.mark.parametrize(("front_site", "end_site"), PAIRS)
def test_dm_fits_the_published_outputs(golden, front_site, end_site):
    images = golden.images[-100:]
    stitches = initial_stitches(
        golden.front, golden.end, [(front_site, end_site)], protocol("fula-v1"), images, seed=0
    )
    published = Stitch(*stitches[front_site, end_site].geometry.__dict__.values())
    pair = f"{front_site}_{end_site}"
    published.assign(golden.initial[f"w_{pair}"], golden.initial[f"b_{pair}"])
    with torch.no_grad():
        (a,) = activations(golden.front, images, [front_site])
        ours, theirs = stitches[front_site, end_site](a), published(a)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def test_dm_keeps_the_published_number_of_directions(golden):
    images = golden.images[-100:]
    with torch.no_grad():
        (a,), (g,) = activations(golden.front, images, [1]), activations(golden.end, images, [1])
    form = solve([(a, g)], "rows")
    assert form.directions == 65
    assert form.kept < 65
