"""Agreement and R^2 against NumPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, r2_score

from fula_fast.measures.agreement import (
    COLUMNS,
    Agreement,
    SiteFit,
    answered,
    error_consistency,
    hard_agreement,
    r_squared,
    residual_squares,
    right,
    soft_agreement,
)
from fula_fast.measures.matrices import between
from fula_fast.measures.outputs import Outputs
from fula_fast.measures.registry import measure

LANES, SAMPLES, CLASSES = 3, 50, 7


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    hint = 2 * torch.nn.functional.one_hot(labels, CLASSES)
    lanes = torch.randn(LANES, SAMPLES, CLASSES, generator=generator) + hint
    return lanes, torch.randn(SAMPLES, CLASSES, generator=generator) + hint, labels


def numpy_soft(a: np.ndarray, b: np.ndarray) -> float:
    values = []
    for x, y in zip(a.astype(float), b.astype(float), strict=True):
        p, q = np.exp(x) / np.exp(x).sum(), np.exp(y) / np.exp(y).sum()
        values.append(p @ q / max(p @ p, q @ q))
    return float(np.mean(values))


def test_each_lane_against_numpy(logits) -> None:
    lanes, end, labels = logits
    mine, theirs = right(lanes, labels), right(end, labels)
    b = (end.numpy().argmax(1) == labels.numpy()).astype(int)
    for lane in range(LANES):
        a = (lanes[lane].numpy().argmax(1) == labels.numpy()).astype(int)
        assert hard_agreement(mine, theirs)[lane] == pytest.approx((a == b).mean(), abs=1e-12)
        expected = cohen_kappa_score(a, b)
        assert error_consistency(mine, theirs)[lane] == pytest.approx(expected, abs=1e-12)
        expected = numpy_soft(lanes[lane].numpy(), end.numpy())
        assert soft_agreement(lanes, end)[lane] == pytest.approx(expected, abs=1e-12)


def test_a_stream_equals_all_samples_together(logits) -> None:
    lanes, end, labels = logits
    stream = Agreement((LANES,))
    for start, stop in ((0, 20), (20, 21), (21, 50)):
        stream.add(lanes[:, start:stop], end[start:stop], labels[start:stop])
    result = stream.result()
    mine, theirs = right(lanes, labels), right(end, labels)
    assert torch.allclose(result["accuracy"], mine.double().mean(-1))
    assert torch.allclose(result["agreement_right_wrong"], hard_agreement(mine, theirs))
    answers = lanes.numpy().argmax(-1) == end.numpy().argmax(-1)
    np.testing.assert_allclose(result["agreement_top1"], answers.mean(-1), rtol=1e-12)
    assert tuple(result) == (*COLUMNS, "unanswered", "end_unanswered")
    assert torch.allclose(result["agreement_soft"], soft_agreement(lanes, end), atol=1e-12)
    assert torch.allclose(result["kappa"], error_consistency(mine, theirs), atol=1e-12)


def test_the_same_model_agrees_fully(logits) -> None:
    _, end, labels = logits
    single = Agreement()
    single.add(end, end, labels)
    result = single.result()
    assert result["agreement_soft"].item() == pytest.approx(1, abs=1e-12)
    assert result["agreement_right_wrong"].item() == 1 and result["kappa"].item() == pytest.approx(
        1
    )


def test_soft_agreement_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    assert soft_agreement(p.log(), q.log()).item() == pytest.approx(0.5 / 0.82, abs=1e-6)


CASES = {"always": (1, 1, 1, 1), "never": (0, 0, 0, 0), "mostly": (1, 1, 1, 0)}


@pytest.mark.parametrize(
    "a, b", [("always", "always"), ("never", "never"), ("always", "never"), ("always", "mostly")]
)
def test_kappa_where_a_model_is_always_right_or_wrong_is_what_its_record_says(a, b) -> None:
    """Of a stitched model, in its definition, and of two donors, whose table needs a number."""
    a, b = (torch.tensor(CASES[name], dtype=torch.bool) for name in (a, b))
    p, q = a.double().mean(), b.double().mean()
    undefined = bool(p * q + (1 - p) * (1 - q) == 1)
    labels = torch.zeros(4, dtype=torch.int64)
    first, second = (torch.stack([r.double(), 1 - r.double()], dim=-1) for r in (a, b))
    stream = Agreement()
    stream.add(first, second, labels)
    for found in (error_consistency(a, b), stream.result()["kappa"]):
        assert found.isnan() if undefined else found == 0
    found = between("kappa", *(Outputs.of(logits, labels) for logits in (first, second)))
    assert found == 0
    said = measure("kappa").careful
    assert said.startswith("0 where a model is always right or always wrong; undefined where both ")
    assert (
        "are always right, or both always wrong: a stitched model's is empty, donors' is 0" in said
    )


def test_r_squared_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(20, 4, 3, 3, generator=generator) + 5
    lanes = target + torch.tensor([0.1, 1.0]).view(2, 1, 1, 1, 1) * torch.randn(
        2, 20, 4, 3, 3, generator=generator
    )
    fit = SiteFit(2)
    for part in (slice(0, 13), slice(13, 20)):
        rows = lanes[:, part].flatten(0, 1)  # (L*B, C, H, W)
        fit.add(residual_squares(rows, target[part], 2), target[part])
    for lane in range(2):
        expected = r2_score(target.double().flatten(), lanes[lane].double().flatten())
        assert fit.result()[lane].item() == pytest.approx(expected, abs=1e-10)
        assert r_squared(lanes[lane], target).item() == pytest.approx(expected, abs=1e-10)


def test_predicting_the_global_mean_has_zero_r_squared() -> None:
    target = torch.arange(12.0).view(4, 3)
    assert r_squared(torch.full_like(target, 5.5), target).item() == pytest.approx(0, abs=1e-12)


INFINITE, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("row", "sound"),
    [
        ([NAN, 0.0, 1.0], False),
        ([0.0, 1.0, NAN], False),
        ([NAN] * 3, False),
        ([INFINITE, 0.0, 1.0], False),
        ([-INFINITE] * 3, False),
        ([-INFINITE, 0.0, 1.0], True),  # a class that the model masks
        ([3e38, 0.0, 1.0], True),
    ],
)
def test_no_class_without_a_finite_logit(row, sound) -> None:
    logits = torch.tensor([row, [1.0, 0.0, 0.0]])
    label = torch.tensor([int(np.nanargmax(row)) if not np.isnan(row).all() else 0, 0])
    assert answered(logits).tolist() == [sound, True]
    assert right(logits, label).tolist() == [sound, True]
    both = Agreement((1,))
    both.add(logits[None], logits, label)
    found = both.result()
    assert float(found["unanswered"][0]) == float(found["end_unanswered"][0]) == 1 - sound
