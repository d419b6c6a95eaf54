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
    "length": lambda x, y: y.reshape(len(x), -1) / len(y[0]),
    "channels": lambda x, y: y.flatten(1) / math.sqrt(x.shape[1]),
    "loop": lambda x, y: sum(y.flatten(1) / n for n in range(1, x.shape[-1])),
    "numel": lambda x, y: y.flatten(1) * x.shape[1:].numel() / x.numel() * x.shape[0],
    "resize": lambda x, y: F.interpolate(y[..., : x.shape[2] // 2], size=x.shape[2:]).flatten(1),
    "new tensor": lambda x, y: y.flatten(1) + y.new_ones(x.shape[0], 256).cumsum(1),
    "type": lambda x, y: y.flatten(1) + torch.arange(256, dtype=x.dtype, device=x.device),
    "new of the image": lambda x, y: y.flatten(1) + x.new_ones(x.size(0), 256).cumsum(1),
    "zeros": lambda x, y: torch.cat([y.flatten(1), torch.zeros(x.shape[0], 8)], 1)[:, 8:] * 2
    + torch.ones((x.shape[0], 1), device=x.device),
    "full": lambda x, y: y.flatten(1) - torch.full((x.size(0), 256), 0.5, dtype=x.dtype),
    "like": lambda x, y: y.flatten(1) + F.pad(torch.ones_like(x), (0, 0, 0, 0, 0, 1)).flatten(1),
    "range": lambda x, y: (y.flatten(1) + 0 * torch.arange(x.shape[0])[:, None]),
    "checked batch": lambda x, y: y.flatten(1) if x.shape[0] > 0 else y,
    "one or more": lambda x, y: y.flatten(1) if x.shape[0] > 1 else y.reshape(1, -1),
    "squeezed": lambda x, y: y.flatten(1).squeeze()[None] if x.size(0) == 1 else y.flatten(1),
    "chunks": lambda x, y: torch.cat([y[:4], y[4:]]).flatten(1) if len(x.shape) * x.shape[0] > 16
    else y.flatten(1),
    "at least": lambda x, y: y.reshape(max(1, x.shape[0]), -1),
    "moved": lambda x, y: y.flatten(1) + torch.zeros(x.shape[0], 256).to(x.device).cos(),
    "no image": lambda x, y: y.flatten(1) if x.numel() else y.new_zeros(0, 256),
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


class Token(nn.Module):
    """A weight, spread over the batch before the site."""

    def __init__(self):
        super().__init__()
        self.token, self.a, self.head = (
            nn.Parameter(torch.ones(1, 4)),
            nn.Conv2d(3, 4, 1),
            nn.Linear(4, 5),
        )

    def forward(self, x):
        token = self.token.expand(x.shape[0], -1) * 2
        return self.head(self.a(x).mean((2, 3)) + token)


def test_a_weight_spread_over_the_batch_before_a_site_is_no_skip_connection():
    net, x = Token().eval(), _x(3, 3, 8, 8)
    assert torch.equal(stages(net, ["a"], input_shape=(3, 8, 8))(x), net(x))


class Counting(nn.Module):
    """Keeps a constant before the site, changes it in place, and uses it behind."""

    def __init__(self, change):
        super().__init__()
        self.change, self.a, self.head = change, nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        kept = torch.zeros(x.shape[0], 4)
        self.change(kept, x)
        return self.head(self.a(x).mean((2, 3)) + kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept, x: kept.add_(x.sum()),
        lambda kept, x: kept[:, 0].copy_(x.mean((1, 2, 3))),
        lambda kept, x: torch.add(kept, x.mean(), out=kept),
    ],
    ids=["method", "view", "out"],
)
def test_what_is_changed_in_place_across_a_site_is_refused(change):
    with pytest.raises(FulaError, match="no chain at site 'a'|computes something else cut"):
        stages(Counting(change), ["a"], input_shape=(3, 8, 8))


CONDITIONS = {
    "one": lambda x, y: y.flatten(1) if x.shape[0] == 1 else -y.flatten(1),
    "many": lambda x, y: y.flatten(1) if x.size(0) <= 64 else 0 * y.flatten(1),
    "odd": lambda x, y: y.flatten(1) * (1 if y.shape[0] % 2 else 2),
    "one inside many": lambda x, y: y.flatten(1) * (
        (3 if x.shape[0] > 9 else 1) if x.shape[0] > 4 else 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("finish", CONDITIONS.values(), ids=CONDITIONS)
def test_a_batchs_size_that_changes_the_function_is_refused(finish):
    with pytest.raises(FulaError, match="of a batch of .*other logits.*sees each image by itself"):
        stages(Sized(finish), ["a"], input_shape=(3, 8, 8))


TURNS = {
    "pixels": lambda x, y: y.flatten(1) if x.sum() > 0 else -y.flatten(1),
    "both": lambda x, y: y.flatten(1) if x.sum() > x.shape[0] else -y.flatten(1),
    "count": lambda x, y: sum(y.flatten(1) for _ in range(x.shape[0])),
}


@pytest.mark.parametrize("finish", TURNS.values(), ids=TURNS)
def test_control_flow_of_pixels_or_over_a_batch_is_refused(finish):
    with pytest.raises(FulaError, match="cannot be traced.*control flow"):
        stages(Sized(finish), ["a"], input_shape=(3, 8, 8))


class Typed(nn.Module):
    """Casts images of another type, as transformers' models do."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        if x.dtype != self.a.weight.dtype:
            x = x.to(self.a.weight.dtype)
        return self.head(self.a(x).mean((2, 3)))


def test_a_condition_on_the_images_type_is_that_of_the_weights():
    net = Typed().eval()
    staged = stages(net, ["a"], input_shape=(3, 8, 8))
    x = _x(2, 3, 8, 8)
    assert torch.equal(staged(x), net(x))
    assert torch.equal(staged.double()(x.double()), net.double()(x.double()))
