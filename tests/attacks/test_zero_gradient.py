"""Images that withstand an attack because there is no gradient are counted, said, and warned of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fula_fast.attacks import robust_evaluate
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
    with pytest.warns(ZeroGradientWarning, match="have a gradient of exactly zero"):
        masked, plain = _attacked(MASKED[name], attack)
    expected = [
        not torch.autograd.functional.jacobian(MASKED[name], x[None]).any()
        if name != "saturated"
        else True
        for x in X
    ]
    wanted = torch.tensor(expected) & masked.robust
    assert masked.zero_gradient.tolist() == wanted.tolist() and wanted.any()
    assert masked.row()["robust_zero_gradient_images"] == masked.zero_gradient_images
    assert plain.zero_gradient_images == 0


@pytest.mark.parametrize("attack", ["pgd-3", "apgd-ce"])
def test_sound_gradients_give_no_warning(attack):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (_, found) = _attacked(_network(), attack)
    assert found.zero_gradient_images == 0 and found.correct.all()
