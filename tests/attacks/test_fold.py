"""Folded models against the models themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from fula_fast.attacks.fold import Folded, ScaleShift, fold, scale_shift
from fula_fast.errors import FulaError
from fula_fast.models import build

from .conftest import small_net

SHAPE = (3, 32, 32)


def lively(model: nn.Module) -> nn.Module:
    """Random batch-norm statistics and affine parameters, so that folding has work to do."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
            module.running_var.mul_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model


def agree(model: nn.Module, folded: nn.Module, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, *SHAPE, generator=generator, dtype=dtype).requires_grad_()
    expected, seen = model.eval()(x), folded(x)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    scale = expected.abs().max().item()
    torch.testing.assert_close(seen, expected, rtol=0, atol=tolerance * scale)
    if dtype == torch.float64:  # in float32 a ReLU's input may round to the other side of zero
        grads = [
            torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (expected, seen)
        ]
        size = grads[0].abs().max().item()
        torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=10 * tolerance * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet18", {"width": 8}),
        ("resnet50", {"width": 4}),
        ("resnet18", {"width": 8, "residuals": False}),
        ("resnet18", {"width": 8, "hook": "pre_relu"}),
        ("vgg16", {"width": 8}),
    ],
)
def test_own_models(name, options, dtype):
    model = lively(build(name, num_classes=7, input_shape=SHAPE, **options)).to(dtype)
    folded = fold(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not any(isinstance(m, ScaleShift) for m in folded.modules())
    agree(model, folded, dtype)


def test_every_stage_agrees():
    """A folded `Staged` can still be run stage by stage."""
    model = lively(build("resnet18", num_classes=7, input_shape=SHAPE, width=8)).double().eval()
    folded = fold(model)
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    for site in range(1, model.num_sites + 1):
        torch.testing.assert_close(
            folded.run(x, 0, site), model.run(x, 0, site), rtol=1e-10, atol=1e-10
        )


def test_foreign_models():
    model = lively(resnet18(num_classes=5))
    agree(model, fold(model, SHAPE), torch.float32)


class PreActivation(nn.Module):
    """Batch norm before the convolution, as in pre-activation networks, and once behind a ReLU."""

    def __init__(self):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(3)
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.bn2 = nn.BatchNorm2d(6, affine=False)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        y = nn.functional.relu_(self.conv1(self.bn0(x)))  # in place: not the convolution's output
        return self.fc(self.bn2(self.bn1(y)).mean((2, 3)))


def test_norms_without_a_convolution_become_a_scale_and_shift():
    torch.manual_seed(0)
    model = PreActivation()
    model.bn0.running_mean += 0.4
    model.bn1.running_var *= 3
    model.bn2.running_mean -= 0.2
    folded = fold(model, SHAPE)
    assert all(isinstance(m, ScaleShift) for m in (folded.bn0, folded.bn1, folded.bn2))
    agree(model, folded, torch.float32)


def test_norms_without_running_statistics_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert isinstance(fold(model, SHAPE)[1], nn.BatchNorm2d)


def test_the_original_is_untouched():
    model = small_net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold(model, (3, 8, 8))
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not folded.training and not any(p.requires_grad for p in folded.parameters())
    assert isinstance(folded[1], Folded) and next(folded.parameters()).dtype == torch.float32


class Leaky(nn.Module):
    """The convolution's output is used beside its batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.bn.running_mean += 1

    def forward(self, x):
        y = self.conv(x)
        return (self.bn(y) + y).mean((2, 3))


def test_a_model_that_cannot_be_folded_is_refused():
    with pytest.raises(FulaError, match="used beside its batch norm"):
        fold(Leaky(), SHAPE)


class Shared(nn.Module):
    """One convolution with two norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.bn2.running_mean += 1

    def forward(self, x):
        return self.bn2(self.conv(self.bn1(self.conv(x)))).mean((2, 3))


def test_a_convolution_used_twice_keeps_its_weights():
    model = Shared()
    folded = fold(model, SHAPE)
    assert isinstance(folded.bn1, ScaleShift) and isinstance(folded.bn2, ScaleShift)
    agree(model, folded, torch.float32)


def test_scale_shift_is_eval_mode_batch_norm():
    norm = nn.BatchNorm2d(5).double()
    norm.running_mean.copy_(torch.randn(5))
    norm.running_var.copy_(torch.rand(5) + 0.1)
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    scale, shift = scale_shift(norm)
    expected = norm.eval()(x)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], expected)
