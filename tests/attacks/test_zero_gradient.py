"""Images that no gradient attack can move are counted, fooled or not, said, and warned of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fula_fast.attacks import robust_evaluate
from fula_fast.attacks.names import COLUMNS
from fula_fast.attacks.robustness import ZeroGradientWarning

CLASSES, SHAPE = 5, (3, 6, 6)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 24), nn.Tanh(), nn.Linear(24, CLASSES))


class Behind(nn.Module):
    """A network behind a function of its input."""

    def __init__(self, change) -> None:
        super().__init__()
        self.net, self.change = _network(), change

    def forward(self, x):
        return self.net(self.change(x))


class Sure(nn.Module):
    """Logits so large that their softmax is 1 in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _network()

    def forward(self, x):
        return 1e6 * self.net(x)


MASKED = {
    "rounding": Behind(lambda x: (255 * x).round() / 255),
    "threshold": Behind(lambda x: (x > 0.5) + 0 * x),
    "floor": Behind(lambda x: torch.floor(4 * x) / 4),
    "saturated": Sure(),
}
X = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(1))
EPS = 8 / 255


def _attacked(model, attack):
    with torch.no_grad():
        labels = model(X).argmax(1)
    return robust_evaluate([model, _network()], X, labels, attack, eps=EPS)


@pytest.mark.parametrize("attack", ["pgd-3", "apgd-ce"])
@pytest.mark.parametrize("name", MASKED)
def test_vanished_gradients_are_counted_and_warned_of(name, attack):
    with pytest.warns(ZeroGradientWarning, match="a gradient of exactly zero at"):
        masked, plain = _attacked(MASKED[name], attack)
    expected = [
        not torch.autograd.functional.jacobian(MASKED[name], x[None]).any()
        if name != "saturated"
        else True
        for x in X
    ]
    assert masked.correct.all()
    assert masked.zero_gradient.tolist() == expected and any(expected)
    assert masked.row()["robust_zero_gradient_images"] == masked.zero_gradient_images
    assert plain.zero_gradient_images == 0


@pytest.mark.parametrize("attack", ["pgd-3", "apgd-ce"])
def test_sound_gradients_give_no_warning(attack):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (_, found) = _attacked(_network(), attack)
    assert found.zero_gradient_images == 0 and found.correct.all()


@pytest.mark.parametrize("name", [name for name in MASKED if name != "saturated"])
def test_images_that_a_search_without_gradients_fools_are_counted_too(name):
    """Noise alone fools what stands at an edge of the rounding: the count is of the start."""
    with torch.no_grad():
        labels = MASKED[name](X).argmax(1)
    with pytest.warns(ZeroGradientWarning, match=r"12 of 12 images .*\(\d+ withstand it\)"):
        (found,) = robust_evaluate(MASKED[name], X, labels, "apgd-ce", eps=0.9)
    assert found.zero_gradient_images == 12 and not found.robust.all()


def test_every_column_of_a_result_has_a_meaning():
    (_, found) = _attacked(_network(), "pgd-1")
    assert {*found.row(), "robust_agreement_soft"} == {*COLUMNS}


def test_images_that_are_wrong_already_are_not_attacked_and_not_counted():
    with torch.no_grad():
        labels = MASKED["rounding"](X).argmax(1)
    labels[:5] = (labels[:5] + 1) % CLASSES
    with pytest.warns(ZeroGradientWarning):
        (found,) = robust_evaluate(MASKED["rounding"], X, labels, "pgd-1", eps=EPS)
    assert found.zero_gradient.tolist() == 5 * [False] + 7 * [True]
