"""Image towers of open_clip as donors: what they compute, and what they refuse."""

import pytest
import torch

from fula_fast.errors import FulaError
from fula_fast.models import build, describe_staged
from fula_fast.models.libraries import library_input

open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TEXT = {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1}
VIT = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"layers": [1, 2, 1, 1], "width": 8}

CASES = {
    "ViT-B-32": (32, VIT, 3),
    "ViT-B-32-quickgelu": (32, VIT, 3),
    "RN50": (64, RESNET, 5),
    "convnext_base": (64, {"timm_model_name": "convnext_atto"}, 4),
}
SLOW = {
    "PE-Core-T-16-384": (64, {}, 12),
    "MobileCLIP2-S0": (64, {}, 4),
    "ViTamin-S": (64, {}, 14),
    "EVA02-B-16": (56, {"timm_model_name": "eva02_tiny_patch14_224"}, 12),
    "swin_base_patch4_window7_224": (224, {"timm_model_name": "swin_tiny_patch4_window7_224"}, 4),
}
"""By name: side of the images, options of the tower, number of sites."""


@torch.no_grad()
def theirs(name: str, side: int, options: dict):
    """The library's own image tower with weights drawn anew, none of them zero."""
    config = open_clip.get_model_config(name)["vision_cfg"] | options | {"image_size": side}
    model = open_clip.create_model(name, embed_dim=16, vision_cfg=config, text_cfg=TEXT).eval()
    tower = model.visual
    if "timm_model_name" in config and hasattr(tower.trunk, "set_input_size"):
        tower.set_input_size(side)
    draw = torch.Generator().manual_seed(0)
    for weight in tower.parameters():
        weight += 0.02 * torch.randn(weight.shape, generator=draw)
    return model


def images(side: int):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_composes(name: str, side: int, options: dict, sites: int) -> None:
    reference = theirs(name, side, options)
    ours = build(
        f"open_clip:{name}", num_classes=10, input_shape=(3, side, side), embed_dim=16,
        vision_cfg=options,
    ).eval()  # fmt: skip
    ours.load_state(reference.visual.state_dict())
    x = images(side)
    wanted = reference.encode_image(x)
    at = x
    for site in range(ours.num_sites):
        at = ours.run(at, site, site + 1)
        assert tuple(at.shape[1:]) == ours.site_shapes[site]
    assert float((ours.head(at) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert ours.num_sites == sites
    assert not describe_staged(ours).classifies
    assert not ours.classifies and ours.num_classes == 16


@pytest.mark.parametrize("name", CASES)
def test_stages_compose_to_the_tower(name):
    check_composes(name, *CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_stages_compose_to_towers_of_timm(name):
    check_composes(name, *SLOW[name])


@torch.no_grad()
def test_weights_of_a_file(tmp_path):
    reference = theirs("ViT-B-32", 32, VIT)
    torch.save(reference.state_dict(), tmp_path / "a.pt")
    options = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
    ours = build(
        "open_clip:ViT-B-32", num_classes=10, input_shape=(3, 32, 32),
        pretrained=str(tmp_path / "a.pt"), **options,
    ).eval()  # fmt: skip
    x = images(32)
    torch.testing.assert_close(ours(x), reference.encode_image(x), rtol=1e-5, atol=1e-5)
    assert ours.options["pretrained"] == str(tmp_path / "a.pt")


def test_weights_of_another_variant_are_named(tmp_path):
    reference = theirs("ViT-B-32", 32, VIT)
    torch.save(reference.state_dict(), tmp_path / "a.pt")
    options = {"embed_dim": 16, "vision_cfg": VIT | {"layers": 2}, "text_cfg": TEXT}
    with pytest.raises(FulaError, match="of another variant: .*visual.* in all") as caught:
        build(
            "open_clip:ViT-B-32", num_classes=10, input_shape=(3, 32, 32),
            pretrained=str(tmp_path / "a.pt"), **options,
        )  # fmt: skip
    assert str(caught.value).count("visual.") == 3 and "\n" not in str(caught.value)


def test_the_input_is_that_of_the_weights():
    known = library_input("open_clip:ViT-B-32", {"pretrained": "laion2b_s34b_b79k"})
    said = open_clip.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    assert known["mean"] == tuple(said["mean"]) and known["std"] == tuple(said["std"])
    assert (known["size"], known["resize"], known["interpolation"]) == (224, 224, "bicubic")
    squashed = library_input("open_clip:ViT-B-16-SigLIP", {"pretrained": True})
    assert squashed["crop"] == "none" and squashed["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("tag", [True, "laion2b_s34b_b79k"])
def test_weights_that_are_not_cached_without_a_network(tag, monkeypatch, tmp_path):
    import socket

    import huggingface_hub

    def refuse(*_args, **_options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    said = "weights of 'open_clip:ViT-B-32' could not be fetched .*bring "
    with pytest.raises(FulaError, match=said) as caught:
        build("open_clip:ViT-B-32", num_classes=10, input_shape=(3, 224, 224), pretrained=tag)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("open_clip:ViT-B-33", {}, "no model 'ViT-B-33'; did you mean 'ViT-B-"),
        ("open_clip:ViT-B-32", {"pretrained": "openia"}, "did you mean 'openai'"),
        ("open_clip:ViT-B-32", {"input_shape": (1, 32, 32)}, "takes 3 channels"),
    ],
)
def test_mistakes_are_explained(name, options, said):
    with pytest.raises(FulaError, match=said):
        build(name, **{"num_classes": 10, "input_shape": (3, 32, 32), **options})
