"""Vision models of transformers as donors: what they compute, and what they refuse."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fula_fast import sweep
from fula_fast.errors import FulaError
from fula_fast.models import build, load_checkpoint, save_checkpoint
from fula_fast.models.libraries import library_input
from fula_fast.pipelines import Frame
from fula_fast.pipelines.draws.frame import framed

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
WIDE = SMALL | {"intermediate_size": 48}
SIDE = 32


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """transformers imports a package `kernels`, which is not our folder of that name."""
    root = Path(__file__).parents[3]
    paths = [path for path in sys.path if Path(path or ".").resolve() != root]
    monkeypatch.setattr(sys, "path", paths)


CASES = {
    # kind: (class of the library, options, where the answer lies)
    "vit": ("ViTForImageClassification", WIDE, "logits"),
    "dinov2": ("Dinov2ForImageClassification", SMALL, "logits"),
    "dinov2_with_registers": ("Dinov2WithRegistersForImageClassification", SMALL, "logits"),
    "clip_vision_model": (
        "CLIPVisionModelWithProjection",
        WIDE | {"projection_dim": 24},
        "image_embeds",
    ),
    "siglip_vision_model": ("SiglipVisionModel", WIDE, "pooler_output"),
}


@torch.no_grad()
def theirs(kind: str, **more):
    """The library's own model with weights drawn anew, none of them zero."""
    name, options, _ = CASES[kind]
    config = transformers.AutoConfig.for_model(
        kind, image_size=SIDE, num_labels=10, **options, **more
    )
    model = getattr(transformers, name)(config).eval()
    draw = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight += 0.05 * torch.randn(weight.shape, generator=draw)
    return model


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def ask(name: str, **options):
    return build(name, num_classes=10, input_shape=(3, SIDE, SIDE), **options).eval()


@pytest.mark.parametrize("kind", CASES)
@torch.no_grad()
def test_stages_compose_to_the_model(kind):
    reference, ours = theirs(kind), ask(f"hf:{kind}", **CASES[kind][1])
    ours.load_state(reference.state_dict())
    x = images(2, 3, SIDE, SIDE)
    wanted = reference(x)[CASES[kind][2]]
    at = x
    for site in range(ours.num_sites):
        at = ours.run(at, site, site + 1)
        assert tuple(at.shape[1:]) == ours.site_shapes[site]
    assert float((ours.head(at) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert ours.num_sites == 3 and all(n.rpartition(".")[2].isdigit() for n in ours.site_names)
    assert ours.classifies == (CASES[kind][2] == "logits")
    assert ours.num_classes == wanted.shape[1]


@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers", "clip_vision_model"])
@torch.no_grad()
def test_sites_are_the_librarys_hidden_states(kind):
    reference, ours = theirs(kind), ask(f"hf:{kind}", **CASES[kind][1])
    ours.load_state(reference.state_dict())
    x = images(2, 3, SIDE, SIDE)
    hidden = reference(x, output_hidden_states=True).hidden_states
    for site in range(1, 4):
        torch.testing.assert_close(ours.run(x, 0, site), hidden[site], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pretrained_weights_of_a_folder(tmp_path):
    reference = theirs("vit")
    reference.save_pretrained(tmp_path)
    ours = ask(f"hf:{tmp_path}", pretrained=True)
    x = images(2, 3, SIDE, SIDE)
    torch.testing.assert_close(ours(x), reference(x).logits, rtol=1e-5, atol=1e-5)
    random = ask(f"hf:{tmp_path}")
    assert random.state().keys() == ours.state().keys()
    assert not torch.allclose(random(x), ours(x))


@torch.no_grad()
def test_the_image_tower_of_clip(tmp_path):
    vision = transformers.CLIPVisionConfig(image_size=SIDE, projection_dim=24, **WIDE)
    text = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        vocab_size=20, max_position_embeddings=8, projection_dim=24,
    )  # fmt: skip
    config = transformers.CLIPConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=24
    )
    reference = transformers.CLIPModel(config).eval()
    reference.save_pretrained(tmp_path)
    ours = ask(f"hf:{tmp_path}", pretrained=True)
    x = images(2, 3, SIDE, SIDE)
    features = reference.get_image_features(pixel_values=x)
    wanted = features if isinstance(features, torch.Tensor) else features.pooler_output
    torch.testing.assert_close(ours(x), wanted, rtol=1e-5, atol=1e-5)
    assert not ours.classifies and ours.num_classes == 24


@torch.no_grad()
def test_a_model_without_a_pooler_gives_its_class_token(tmp_path):
    config = transformers.ViTConfig(image_size=SIDE, **WIDE)
    reference = transformers.Dinov2Model(transformers.Dinov2Config(image_size=SIDE, **SMALL)).eval()
    reference.save_pretrained(tmp_path / "dino")
    x = images(2, 3, SIDE, SIDE)
    ours = ask(f"hf:{tmp_path / 'dino'}", pretrained=True)
    torch.testing.assert_close(ours(x), reference(x).last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)
    bare = transformers.ViTModel(config, add_pooling_layer=False).eval()
    bare.save_pretrained(tmp_path / "vit")
    with pytest.raises(FulaError, match=r" pooler.dense.bias, pooler.dense.weight \(2 in"):
        ask(f"hf:{tmp_path / 'vit'}", pretrained=True)


def test_a_stored_donor_needs_no_library_weights(tmp_path):
    theirs("vit").save_pretrained(tmp_path / "theirs")
    ours = ask(f"hf:{tmp_path / 'theirs'}", pretrained=True)
    save_checkpoint(ours, tmp_path / "a.safetensors")
    again = load_checkpoint(tmp_path / "a.safetensors")
    x = images(2, 3, SIDE, SIDE)
    assert torch.equal(again(x), ours(x)) and again.name == ours.name


PROCESSORS = {
    "clip": lambda: transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": SIDE, "width": SIDE}
    ),
    "vit": lambda: transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_input_is_that_of_the_models_processor(kind, tmp_path):
    theirs("vit").save_pretrained(tmp_path)
    processor = PROCESSORS[kind]()
    processor.save_pretrained(tmp_path)
    known = library_input(f"hf:{tmp_path}", {"pretrained": True})
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 6, generator=draw)
    fine = torch.nn.functional.interpolate(coarse, (60, 60), mode="bicubic").clamp(0, 1)
    pixels = (fine * 255).round().byte()
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    wanted = processor(picture, return_tensors="pt")["pixel_values"]
    resize = known.get("resize") if known.get("crop") != "none" else None
    x = framed(pixels / 255, Frame(known["size"], resize, known["interpolation"]))
    mean, std = (torch.tensor(known[n])[:, None, None] for n in ("mean", "std"))
    assert float(((x - mean) / std - wanted).abs().max()) < 1.6 / 255 / 0.2


def test_a_folder_without_a_processor_says_no_input(tmp_path, caplog):
    theirs("vit").save_pretrained(tmp_path)
    assert library_input(f"hf:{tmp_path}", {"pretrained": True}) == {}
    assert "has no preprocessor_config.json" in caplog.text


def test_weights_of_another_variant_are_named(tmp_path):
    theirs("dinov2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = r"not those of its ViTFor.* classifier.weight, vit\.\S+, vit\.\S+ … \(\d+ in all\)"
    with pytest.raises(FulaError, match=said) as caught:
        ask(f"hf:{tmp_path}", pretrained=True)
    assert "\n" not in str(caught.value)


def test_sizes_that_fit_a_fixed_position_embedding(tmp_path):
    theirs("vit").save_pretrained(tmp_path)
    with pytest.raises(FulaError, match="does not take images of 48 pixels .*fit: 32: set size"):
        build(f"hf:{tmp_path}", num_classes=10, input_shape=(3, 48, 48), pretrained=True)


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("hf:vit", {"pretrained": True}, "name their repository or folder"),
        ("hf:vit", {"hidden_sizes": 8}, "no option 'hidden_sizes'; did you mean 'hidden_size'"),
        ("hf:bert", {}, "takes input_ids, not images"),
        ("hf:siglip2_vision_model", {}, "patches of any resolution"),
    ],
)
def test_mistakes_are_explained(name, options, said):
    with pytest.raises(FulaError, match=said) as caught:
        ask(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_repository_that_is_not_cached_without_a_network(pretrained, monkeypatch, tmp_path):
    import socket

    import huggingface_hub

    def refuse(*_args, **_options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    what = "pretrained weights" if pretrained else "configuration"
    said = f"{what} of 'hf:facebook/dinov2-small' could not be fetched .*bring the repository"
    with pytest.raises(FulaError, match=said) as caught:
        ask("hf:facebook/dinov2-small", pretrained=pretrained)
    assert "model = 'hf:FOLDER'" in str(caught.value) and "\n" not in str(caught.value)


def test_a_sweep_of_towers_on_images_without_labels(tmp_path, without_plots):
    """Stitches between embeddings: what needs no answers is measured, the rest stays empty."""
    dino = transformers.Dinov2Model(transformers.Dinov2Config(image_size=SIDE, **SMALL))
    dino.save_pretrained(tmp_path / "dino")
    theirs("clip_vision_model").save_pretrained(tmp_path / "clip")
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8) for n in (64, 32)]
    spec = {
        "data": {"size": SIDE},
        "donors": {
            n: {"model": f"hf:{tmp_path / n}", "pretrained": True} for n in ("dino", "clip")
        },
        "grid": {"front": "dino", "end": "clip", "sites": [[1, 2]], "methods": ["dm", "fula"]},
        "protocol": {"epochs": 1, "dm_samples": 60, "batch_size": 32},
        "engine": {"device": "cpu", "precision": "fp32"},
    }
    given = {"data": images, "quiet": True, "donors": tmp_path / "donors"}
    found = sweep(spec, tmp_path / "run", **given)
    assert len(found.rows) == 2 and not found.failed
    for row in found.rows:
        assert row["accuracy"] is row["agreement_soft"] is row["end_accuracy"] is None
        assert 0 < row["term_stitch"] < 10
    spec["grid"]["methods"] = "slm"
    with pytest.raises(FulaError, match="method 'slm' needs a classifier, but end 'clip' .*24 num"):
        sweep(spec, tmp_path / "slm", **given)
