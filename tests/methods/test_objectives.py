"""Objectives and their gradients, against formulas written out in NumPy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fula_fast.errors import FulaError
from fula_fast.methods import method, objective, trained
from fula_fast.methods.objectives import soft_label_losses, term, value
from fula_fast.methods.weightings import term_weights

SHAPES = [(4, 3, 2, 5), (4, 6, 3), (4, 7)]


def pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape) + 0.5


def formula(h, g, norm):
    """||h - g|| / ||g||, over the whole batch, or the mean of the samples' own ratios."""
    if norm == "batch":
        return np.sqrt(((h - g) ** 2).sum() / (g**2).sum())
    ratios = [np.sqrt(((a - b) ** 2).sum() / (b**2).sum()) for a, b in zip(h, g, strict=True)]
    return np.mean(ratios)


def formula_gradient(h, g, norm):
    """(h - g) / (||h - g|| ||g||), per sample divided by the batch size."""
    if norm == "batch":
        return (h - g) / (np.linalg.norm(h - g) * np.linalg.norm(g))
    rows = [
        (a - b) / (np.linalg.norm(a - b) * np.linalg.norm(b)) for a, b in zip(h, g, strict=True)
    ]
    return np.stack(rows) / len(h)


@pytest.mark.parametrize("norm", ["batch", "sample"])
@pytest.mark.parametrize("shape", SHAPES)
def test_term_and_its_gradient(shape, norm):
    h, g = pair(shape)
    ours = torch.tensor(h, requires_grad=True)
    value = term(ours, torch.tensor(g), norm)
    value.backward()
    assert float(value.detach()) == pytest.approx(formula(h, g, norm), rel=1e-13)
    np.testing.assert_allclose(ours.grad, formula_gradient(h, g, norm), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_term_against_finite_differences(norm):
    h, g = pair((3, 2, 2, 2), seed=1)
    ours = torch.tensor(h, requires_grad=True)
    term(ours, torch.tensor(g), norm).backward()
    for place in np.ndindex(h.shape):
        nudge = np.zeros_like(h)
        nudge[place] = 1e-6
        slope = (formula(h + nudge, g, norm) - formula(h - nudge, g, norm)) / 2e-6
        assert float(ours.grad[place]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_no_gradient_reaches_the_target(norm):
    h, g = (torch.tensor(a, requires_grad=True) for a in pair((2, 3)))
    term(h, g, norm).backward()
    assert h.grad is not None and g.grad is None


@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_at_zero_distance_value_and_gradient_are_zero(norm):
    _, g = pair((3, 4))
    h = torch.tensor(g, requires_grad=True)
    value = term(h, torch.tensor(g), norm)
    value.backward()
    assert float(value.detach()) == 0.0
    assert torch.equal(h.grad, torch.zeros_like(h))


def test_one_sample_at_zero_distance_leaves_the_others_gradient():
    h, g = pair((3, 4))
    h[1] = g[1]
    ours = torch.tensor(h, requires_grad=True)
    term(ours, torch.tensor(g), "sample").backward()
    assert torch.equal(ours.grad[1], torch.zeros(4, dtype=torch.float64))
    others = formula_gradient(h[[0, 2]], g[[0, 2]], "sample") * 2 / 3
    np.testing.assert_allclose(ours.grad[[0, 2]], others, rtol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_a_target_of_zeros_has_no_relative_distance(norm):
    h = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    value = term(h, torch.zeros(2, 3, dtype=torch.float64), norm)
    value.backward()
    assert float(value.detach()) == 0.0 and torch.equal(h.grad, torch.zeros_like(h))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_slm_is_the_divergence_from_the_ends_probabilities():
    z, t = pair((5, 4), seed=2)
    ours = torch.tensor(z, requires_grad=True)
    loss = soft_label_losses(ours[None], torch.tensor(t))[0]
    loss.backward()
    p, q = softmax(z), softmax(t)
    assert float(loss.detach()) == pytest.approx((q * (np.log(q) - np.log(p))).sum(-1).mean())
    np.testing.assert_allclose(ours.grad, (p - q) / 5, rtol=1e-10, atol=1e-15)


def test_slm_has_the_gradient_of_the_cross_entropy():
    z, t = (torch.tensor(a) for a in pair((5, 4), seed=3))
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    soft_label_losses(ours[None], t)[0].backward()
    F.cross_entropy(theirs, t.softmax(-1)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


def test_slm_of_lanes_is_each_lanes_own():
    z, t = pair((3, 5, 4), seed=4)
    together = soft_label_losses(torch.tensor(z), torch.tensor(t))
    alone = [soft_label_losses(torch.tensor(a)[None], torch.tensor(b))[0] for a, b in zip(z, t)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-14, atol=0)


def test_values_are_the_four_objectives():
    z, t = pair((5, 4), seed=5)
    terms = [torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.25, 1.0)]
    labels = np.array([0, 3, 2, 2, 1])
    given = (terms, (1.0, 0.0, 4.0), *(torch.tensor(a) for a in (z, t, labels)))
    found = {name: value(method(name), *given) for name in trained()}
    assert set(found) == {"hint", "fula", "slm", "tlm"}
    assert float(found["hint"]) == 0.5
    assert float(found["fula"]) == pytest.approx(0.2 * 0.5 + 0.8 * 1.0)
    expected = -np.log(softmax(z)[np.arange(5), labels]).mean()
    assert float(found["tlm"]) == pytest.approx(expected)


def test_a_term_without_weight_gives_no_gradient():
    terms = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
    z = torch.zeros(2, 4, dtype=torch.float64)
    labels = torch.zeros(2, dtype=torch.int64)
    value(method("fula"), terms, (0.5, 0.0, 0.5), z, z, labels).backward()
    assert [None if t.grad is None else float(t.grad) for t in terms] == [0.5, None, 0.5]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("uniform", (0.25,) * 4),
        ("last", (0, 0, 0, 1)),
        ("cutoff=0", (1, 0, 0, 0)),
        ("cutoff=2", (1 / 3, 1 / 3, 1 / 3, 0)),
        ("cutoff=9", (0.25,) * 4),
        ((2, 0, 1, 1), (0.5, 0, 0.25, 0.25)),
    ],
)
def test_weights_of_the_terms(weighting, expected):
    assert term_weights(weighting, 4) == pytest.approx(expected)


def test_a_list_of_another_length_is_refused():
    with pytest.raises(FulaError, match="3 weights, but 4 sites follow the stitch"):
        term_weights((1, 1, 1), 4)


def test_mixtures():
    assert objective("dm") == {}
    assert objective("fula") == {"fula": 1.0}
    assert objective({"fula": 0.5, "tlm": 0.0, "slm": 2}) == {"fula": 0.5, "slm": 2}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("fulla", "unknown method 'fulla'; did you mean 'fula'"),
        ({"fulla": 1.0}, "unknown objective 'fulla'; did you mean 'fula'"),
        ({"dm": 1.0}, "unknown objective 'dm'"),
        ({"tlm": -0.5}, "tlm = -0.5 must be non-negative"),
        ({"tlm": float("nan")}, "must be non-negative"),
        ({"tlm": 0.0}, "positive sum"),
    ],
)
def test_objectives_that_mean_nothing(asked, message):
    with pytest.raises(FulaError, match=message):
        objective(asked)
