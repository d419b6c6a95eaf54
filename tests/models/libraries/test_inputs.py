"""Inputs of pretrained models, as the libraries' own transforms make them."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from fula_fast.errors import FulaError
from fula_fast.models.libraries import LIBRARIES, library_input
from fula_fast.pipelines import Frame
from fula_fast.pipelines.draws.frame import framed
from fula_fast.study.spec import load_spec


def square(side: int) -> tuple[Image.Image, torch.Tensor]:
    """A smooth picture, and its pixels (1, 3, side, side) in [0, 1]."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 6, generator=draw)
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    pixels = (fine * 255).round().byte()
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy()), pixels / 255


def prepared(known: dict, x: torch.Tensor) -> torch.Tensor:
    frame = Frame(known["size"], known.get("resize"), known["interpolation"])
    mean, std = (torch.tensor(known[n])[:, None, None] for n in ("mean", "std"))
    return (framed(x, frame) - mean) / std


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """To the rounding of pixels, which Pillow does after each of its two passes."""
    return float((found - wanted).abs().max()) < 1.6 / 255 / 0.2


@pytest.mark.parametrize("kind", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_timms(kind):
    timm = pytest.importorskip("timm")
    said = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(kind).to_dict())
    picture, x = square(300)
    wanted = timm.data.create_transform(**said, is_training=False)(picture)
    known = library_input(f"timm:{kind}", {"pretrained": True})
    assert close(prepared(known, x), wanted)


@pytest.mark.parametrize("options", [{"weights": "DEFAULT"}, {"pretrained": True}])
@pytest.mark.parametrize("kind", ["resnet18", "resnet50", "efficientnet_b0"])
def test_torchvisions(kind, options):
    from torchvision.models import get_model_weights

    picture, x = square(300)
    wanted = get_model_weights(kind).DEFAULT.transforms()(picture)
    known = library_input(f"torchvision:{kind}", options)
    assert close(prepared(known, x), wanted)


def test_which_weights_decide_the_input():
    first, second = (
        library_input("torchvision:resnet50", {"pretrained": f"IMAGENET1K_V{n}"}) for n in (1, 2)
    )
    assert (first["resize"], second["resize"]) == (256, 232)
    with pytest.raises(FulaError, match="does not know the input of 'torchvision:resnet50'"):
        library_input("torchvision:resnet50", {"pretrained": "IMAGENET1K_V9"})


def test_what_is_not_pretrained_has_none():
    assert library_input("resnet18", {}) == library_input("timm:resnet18", {}) == {}


def loaded(given: dict):
    donor = {"model": "timm:vit_tiny_patch16_224", "pretrained": True}
    grid = {"front": "a", "end": "a", "methods": "dm"}
    spec = load_spec({"donors": {"a": donor | {"input": given}}, "grid": grid})
    return spec.donors["a"].input


def test_a_spec_says_what_the_library_does_not():
    known = library_input("timm:vit_tiny_patch16_224", {"pretrained": True})
    assert loaded({}).model_dump(include=set(known)) == known
    smaller = loaded({"size": 160})
    assert (smaller.size, smaller.resize) == (160, None) and smaller.mean == known["mean"]
    assert loaded({"mean": 0.1, "std": 0.2}).mean == (0.1,)
    assert loaded({"crop": "none"}).frame == Frame(224, None, "bicubic")


def test_other_interpolations_are_refused(monkeypatch):
    lanczos = replace(LIBRARIES["timm"], given=lambda request: {"interpolation": "lanczos"})
    monkeypatch.setitem(LIBRARIES, "timm", lanczos)
    with pytest.raises(FulaError, match="resized by 'lanczos'"):
        library_input("timm:resnet18", {"pretrained": True})
