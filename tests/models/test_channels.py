"""Networks that keep channels last: sites have the form of a stitch, and the network its function."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import fula_fast
from fula_fast import FulaError
from fula_fast.models import build, describe_staged, sites_table
from fula_fast.pipelines import load_source


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x):
        return x.permute(self.order)


class Mixer(nn.Module):
    """A block over (B, H, W, C), as Swin's: a norm and a layer over the last axis, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.mix(self.norm(x))


class Mean(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.mean(self.axes)


def _last(width: int = 8) -> nn.Sequential:
    """Height, width and channels are all 8: no shape tells them apart."""
    return nn.Sequential(
        nn.Conv2d(3, width, 2, 2), Permute(0, 2, 3, 1), Mixer(width), Mixer(width), Mean(1, 2),
        nn.Linear(width, 10),
    )  # fmt: skip


def _pooled(width: int = 8) -> nn.Sequential:
    """Told only by the larger image: nothing but sums behind the cut."""
    return nn.Sequential(
        nn.Conv2d(3, width, 2, 2), Permute(0, 2, 3, 1), Permute(0, 2, 1, 3), Mean(1, 2),
        nn.Linear(width, 10),
    )  # fmt: skip


def _sequence(width: int = 8) -> nn.Sequential:
    """(B, C, N), as of one-dimensional convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, width, 2, 2), nn.Flatten(2), nn.Conv1d(width, width, 3, padding=1), nn.ReLU(),
        nn.Conv1d(width, width, 3, padding=1), Mean(2), nn.Linear(width, 10),
    )  # fmt: skip


SHAPE = (3, 16, 16)
CASES = {
    "mixer": (_last, ["2", "3"], (8, 8, 8), "conv, channels last"),
    "pooled": (_pooled, ["2"], (8, 8, 8), "conv, channels last"),
    "sequence": (_sequence, ["3"], (64, 8), "token, channels first"),
}


@pytest.mark.parametrize("name", CASES)
def test_sites_are_moved_and_the_function_stays(name):
    make, names, shape, layout = CASES[name]
    torch.manual_seed(0)
    net = make().eval()
    staged = fula_fast.stages(net, names, input_shape=SHAPE)
    x = torch.rand(2, *SHAPE)
    seen = {}
    for site in names:
        net.get_submodule(site).register_forward_hook(
            lambda m, args, y, site=site: seen.update({site: y})
        )
    torch.testing.assert_close(staged(x), net(x), rtol=0, atol=1e-6)
    assert staged.site_shapes == (shape,) * len(names)
    assert staged.moved_sites == tuple(range(1, len(names) + 1))
    order = (0, 3, 1, 2) if len(shape) == 3 else (0, 2, 1)
    for k, site in enumerate(names, 1):
        torch.testing.assert_close(staged.run(x, 0, k), seen[site].permute(order))
    out = io.StringIO()
    Console(file=out, width=140).print(sites_table(describe_staged(staged)))
    assert out.getvalue().count(layout) == len(names)


FIRST = {
    "plain": (nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 4)), "1"),
    "pool": (nn.Sequential(nn.Conv2d(3, 7, 1), nn.AdaptiveAvgPool2d(7), nn.Flatten(),
                           nn.Linear(343, 4)), "1"),
    "one": (nn.Sequential(nn.Conv2d(3, 9, 16), nn.Softmax(1), nn.Flatten(), nn.Linear(9, 4)), "1"),
    "tokens": (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Permute(0, 2, 1),
                             nn.LayerNorm(8), Mean(1), nn.Linear(8, 4)), "2"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_sites_in_form_stay_where_they_are(name):
    net, site = FIRST[name]
    assert fula_fast.stages(net, [site], input_shape=SHAPE).moved_sites == ()


def test_maps_of_which_nothing_tells_are_refused_unless_said():
    net = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 16, 16)), nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(FulaError, match=r"'1' .*nothing tells where .*channels = 'first' or"):
        fula_fast.stages(net, ["1"], input_shape=SHAPE)
    said = fula_fast.stages(net, ["1"], input_shape=SHAPE, channels="last")
    assert said.site_shapes == ((16, 3, 16),)
    with pytest.raises(FulaError, match="channels = 'middle' is none of"):
        fula_fast.stages(net, ["1"], input_shape=SHAPE, channels="middle")


@pytest.mark.parametrize("name", ["torchvision:swin_t", "timm:swin_tiny_patch4_window7_224"])
@pytest.mark.slow
def test_swin_by_name_has_maps_with_channels_first(name):
    staged = build(name, num_classes=4, input_shape=(3, 224, 224)).eval()
    channels = {shape[0] for shape in staged.site_shapes if len(shape) == 3}
    assert channels <= {96, 192, 384, 768} and len(channels) == 4
    assert len(staged.moved_sites) >= 4


def test_the_closed_form_between_channels_last_and_first_is_exact():
    """The front's maps are the end's, kept in another layout: a stitch must find the identity."""
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 10)
    first = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    last = nn.Sequential(conv, Permute(0, 2, 3, 1), Mean(1, 2), head)
    donors = [
        fula_fast.stages(net, [site], input_shape=(3, 8, 8))
        for net, site in ((last, "1"), (first, "0"))
    ]
    found = fula_fast.stitch(
        *donors, 1, 1, load_source("digits", size=8), method="dm", dm_rcond=1e-6, dm_samples=200
    )
    assert found.agreement_soft > 0.999 and found.term_stitch < 1e-3
