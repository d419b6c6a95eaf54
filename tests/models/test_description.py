"""Shapes, parameters and FLOPs by formula against the built model and torch's own counter."""

import io
import subprocess
import sys

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from fula_fast.models import build, describe, describe_staged, sites_table, stages

CASES = [
    ("resnet18", (3, 32, 32), {"width": 16}),
    ("resnet18", (1, 28, 28), {"stem": "stock", "width": 20}),
    ("resnet34", (3, 17, 23), {"width": 6, "hook": "pre_relu"}),
    ("resnet50", (3, 32, 32), {"width": 8, "residuals": False, "hook": "pre_relu"}),
    ("resnet50", (3, 64, 64), {"stem": "stock", "width": 8}),
    ("vgg16", (3, 48, 48), {"width": 8}),
    ("vgg19", (1, 33, 32), {"width": 8, "batch_norm": False, "hook": "pre_relu"}),
    ("vit_tiny", (3, 32, 32), {"every": 2}),
    ("vit_tiny", (1, 16, 16), {}),
]


@pytest.mark.parametrize("name, shape, options", CASES)
def test_formula_is_what_torch_counts(name, shape, options):
    if name.startswith("vit"):
        pytest.importorskip("timm")
    staged = build(name, num_classes=10, input_shape=shape, **options)
    assert describe(name, 10, shape, **options) == describe_staged(staged)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stock_model_at_full_size_against_torchvision(name):
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)()
        with FlopCounterMode(display=False) as counter:
            reference.eval()(torch.rand(1, 3, 224, 224))
    found = describe(name, 1000, (3, 224, 224), stem="stock")
    assert found.flops == counter.get_total_flops()
    assert found.parameters == sum(p.numel() for p in reference.parameters())


def test_parameters_known_from_the_literature():
    """Counts that timm and torchvision publish for these models."""
    assert describe("vit_base", 1000, (3, 224, 224)).parameters == 86_567_656
    assert describe("vgg16", 1000, (3, 224, 224), stem="stock").parameters == 138_365_992
    assert describe("resnet18", 1000, (3, 224, 224), stem="stock").parameters == 11_689_512


def test_other_models_are_built_and_run():
    found = describe("torchvision:resnet18", 10, (3, 64, 64))
    assert [site.name for site in found.sites][-1] == "layer4.1"
    same = describe("resnet18", 10, (3, 64, 64), stem="stock")
    assert (found.flops, found.parameters) == (same.flops, same.parameters)


def test_kinds_and_channels():
    conv = describe("resnet18", 10, (3, 32, 32)).sites[4]
    assert (conv.index, conv.kind, conv.channels, conv.shape) == (5, "conv", 128, (128, 16, 16))
    vector = describe("resnet18", 10, (3, 28, 28), stem="stock").sites[-1]
    assert (vector.kind, vector.channels) == ("vector", 512)
    token = describe("vit_tiny", 10, (3, 32, 32)).sites[0]
    assert (token.kind, token.channels, token.shape) == ("token", 192, (65, 192))


def test_known_models_need_no_torch():
    code = (
        "import sys; from fula_fast.models import describe; describe('resnet50', 10, (3, 32, 32)); "
        "describe('vit_base', 10, (3, 224, 224)); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'timm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_table_shows_every_site():
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(sites_table(describe("resnet18", 10, (3, 32, 32))))
    text = console.export_text()
    assert "resnet18, input 3×32×32, post_relu" in text
    assert "layer4.1" in text and "11,173,962" in text and "1,110.85" in text


class Pooled(torch.nn.Module):
    """A weight goes through a module of its own, as the query of attention pooling does."""

    def __init__(self):
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
        self.latent = torch.nn.Parameter(torch.ones(1, 4))
        self.query = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)) * self.query(self.latent.expand(len(x), -1)))


def test_a_weight_may_be_a_modules_input():
    found = describe_staged(stages(Pooled(), ["block"], input_shape=(3, 8, 8)))
    assert found.head.flops == 2 * 4 * 4 + 2 * 4 * 5
