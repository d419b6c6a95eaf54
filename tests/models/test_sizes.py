"""Arithmetic on shapes is no skip connection; what depends on pixels still is one."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fula_fast.errors import FulaError
from fula_fast.models import stages


class Sized(nn.Module):
    """`finish`: what is done with the image x behind the site, whose output is y."""

    def __init__(self, finish, checked=True):
        super().__init__()
        self.finish, self.checked = finish, checked
        self.a, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 5)

    def forward(self, x):
        if self.checked:
            _, channels, high, wide = x.shape
            if channels != 3 or x.dim() != 4:
                raise ValueError(f"{channels} channels")
            assert high == wide, "not square"
        return self.head(self.finish(x, self.a(x)))


FINISHES = {
    "reshape": lambda x, y: y.reshape(x.shape[0], -1),
    "view": lambda x, y: y.view(x.size(0), 4 * x.size(2) * x.size()[3]),
    "batch arithmetic": lambda x, y: y.reshape(x.shape[0] * 2, -1).reshape(x.shape[0], -1),
    "channels": lambda x, y: y.flatten(1) / math.sqrt(x.shape[1]),
    "loop": lambda x, y: sum(y.flatten(1) / n for n in range(1, x.shape[-1])),
    "numel": lambda x, y: y.flatten(1) * x.shape[1:].numel() / x.numel() * x.shape[0],
    "resize": lambda x, y: F.interpolate(y[..., : x.shape[2] // 2], size=x.shape[2:]).flatten(1),
    "new tensor": lambda x, y: y.flatten(1) + y.new_ones(x.shape[0], 256).cumsum(1),
    "type": lambda x, y: y.flatten(1) + torch.arange(256, dtype=x.dtype, device=x.device),
    "inside": lambda x, y: y.reshape(y.shape[0], int(y.shape[1]) * y.shape[2] * y.shape[3]),
}  # fmt: skip


def _x(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("finish", FINISHES.values(), ids=FINISHES)
def test_arithmetic_on_shapes_is_no_skip_connection(finish, checked):
    net = Sized(finish, checked).eval()
    staged = stages(net, ["a"], input_shape=(3, 8, 8))
    for batch in (1, 2, 5):
        x = _x(batch, 3, 8, 8)
        assert torch.equal(staged(x), net(x))
        assert torch.equal(staged.head(net.a(x)), net(x))


@pytest.mark.parametrize(
    ("shape", "reason"), [((2, 8, 8), "2 channels"), ((3, 8, 4), "not square")]
)
def test_a_models_own_check_of_its_input_is_reported(shape, reason):
    with pytest.raises(FulaError, match=f"does not run on an input .*{reason}.*input_shape"):
        stages(Sized(FINISHES["reshape"]), ["a"], input_shape=shape)


PIXELS = {
    "value": lambda x, y: y.flatten(1) * x.max(),
    "tensor": lambda x, y: (y + x[:, :1]).flatten(1),
    "rows": lambda x, y: y.flatten(1) + x.nonzero().shape[0],
}


@pytest.mark.parametrize("finish", PIXELS.values(), ids=PIXELS)
@pytest.mark.parametrize("checked", [True, False])
def test_what_pixels_decide_still_crosses(finish, checked):
    with pytest.raises(FulaError, match="no chain at site 'a'"):
        stages(Sized(finish, checked), ["a"], input_shape=(3, 8, 8))


CONDITIONS = {
    "pixels": lambda x, y: y.flatten(1) if x.sum() > 0 else -y.flatten(1),
    "batch": lambda x, y: y.flatten(1) if x.shape[0] == 1 else -y.flatten(1),
}


@pytest.mark.parametrize("finish", CONDITIONS.values(), ids=CONDITIONS)
def test_conditions_on_pixels_or_the_batchs_size_are_refused(finish):
    with pytest.raises(FulaError, match="cannot be traced.*control flow"):
        stages(Sized(finish), ["a"], input_shape=(3, 8, 8))
