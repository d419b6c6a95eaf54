"""ViTs, torchvision and timm models as donors."""

import socket
import sys
import time
from urllib.error import URLError

import pytest
import torch
import torchvision

from fula_fast.errors import FulaError
from fula_fast.models import build, load_checkpoint, save_checkpoint, stages


def _x(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_vit_tiny_is_timms():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10
    ).eval()
    torch.manual_seed(0)
    ours = build("vit_tiny", num_classes=10, input_shape=(3, 32, 32)).eval()
    assert ours.state().keys() == reference.state_dict().keys()
    x = _x(2, 3, 32, 32)
    assert torch.equal(ours(x), reference(x))
    assert ours.site_shapes == ((65, 192),) * 12
    assert ours.head.get_submodule("head").out_features == 10


def test_vit_every_second_block_ends_before_the_head():
    pytest.importorskip("timm")
    model = build("vit_tiny", num_classes=10, input_shape=(1, 28, 28), every=2)
    assert model.site_names == tuple(f"blocks.{i}" for i in (1, 3, 5, 7, 9, 11))


@pytest.mark.slow
def test_vit_base_is_timms():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        reference = timm.create_model("vit_base_patch16_224", num_classes=10)
    ours = build("vit_base", num_classes=10, input_shape=(3, 32, 32))
    shapes = {name: value.shape for name, value in reference.state_dict().items()}
    found = {name: value.shape for name, value in ours.state().items()}
    del shapes["pos_embed"], found["pos_embed"]  # the only one that depends on the image size
    assert found == shapes


@pytest.mark.parametrize(
    "name, package, install",
    [
        ("vit_tiny", "timm", "timm"),
        ("timm:resnet18", "timm", "timm"),
        ("open_clip:ViT-B-32", "open_clip", "open_clip_torch"),
        ("hf:vit", "transformers", "transformers"),
    ],
)
def test_without_the_library_the_install_command_is_named(name, package, install, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FulaError, match=f"needs {package}, .* run: pip install {install}$"):
        build(name, num_classes=10, input_shape=(3, 32, 32))


@pytest.mark.parametrize(
    "name, theirs, size, sites",
    [
        ("torchvision:resnet18", "resnet18", 32, 8),
        ("torchvision:mobilenet_v2", "mobilenet_v2", 32, 19),
        ("torchvision:densenet121", "densenet121", 32, 4),
    ],
)
def test_torchvision_models_keep_their_function(name, theirs, size, sites):
    torch.manual_seed(0)
    reference = getattr(torchvision.models, theirs)(num_classes=10).eval()
    torch.manual_seed(0)
    ours = build(name, num_classes=10, input_shape=(3, size, size)).eval()
    assert ours.num_sites == sites
    x = _x(2, 3, size, size)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-6, atol=1e-6)
    assert ours.state().keys() == reference.state_dict().keys()


def test_torchvision_vit_has_token_sites():
    ours = build("torchvision:vit_b_32", num_classes=10, input_shape=(3, 64, 64))
    assert ours.site_shapes == ((5, 768),) * 12


def test_timm_convolutional_model():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.create_model("resnet18", num_classes=10).eval()
    torch.manual_seed(0)
    ours = build("timm:resnet18", num_classes=10, input_shape=(3, 32, 32)).eval()
    x = _x(2, 3, 32, 32)
    assert torch.equal(ours(x), reference(x))


def test_given_sites_and_constructor_options():
    ours = build(
        "torchvision:resnet18",
        num_classes=10,
        input_shape=(3, 32, 32),
        sites=["maxpool", "layer4"],
        zero_init_residual=True,
    )
    assert ours.site_names == ("maxpool", "layer4")
    assert ours.state()["layer1.0.bn2.weight"].count_nonzero() == 0
    assert ours.options == {"sites": ["maxpool", "layer4"], "zero_init_residual": True}


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("torchvision:resnt18", {}, "did you mean 'resnet18'"),
        ("torchvison:resnet18", {}, "unknown model"),
        ("torchvision:resnet18", {"input_shape": (1, 32, 32)}, "takes 3 channels"),
        ("torchvision:resnet18", {"colour": 1}, "unexpected keyword argument 'colour'"),
        ("torchvision:resnet18", {"weights": "x", "num_classes": 1000}, "built: it knows no 'x'"),
        ("torchvision:resnet18", {"hook": "pre_relu"}, "no known pre-ReLU sites"),
        ("timm:resnt18", {}, "timm has no model 'resnt18'"),
        ("vit_tiny", {"input_shape": (3, 30, 30)}, "multiple of 4 pixels"),
        ("vit_tiny", {"every": 0}, "every = 0"),
    ],
)
def test_mistakes_are_explained(name, change, message):
    if name.startswith(("timm", "vit")):
        pytest.importorskip("timm")
    with pytest.raises(FulaError, match=message):
        build(name, **{"num_classes": 10, "input_shape": (3, 32, 32), **change})


def _no_network(*args, **options):
    raise URLError("Name or service not known")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_the_hub_is_asked_once_where_it_does_not_answer(name, monkeypatch, tmp_path, caplog):
    """Not six times for each file, half a minute long."""
    pytest.importorskip("timm")
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def refuse(host, *_args, **_options):
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    with pytest.raises(FulaError, match="could not be fetched .*bring the repository 'timm/"):
        build(f"timm:{name}", num_classes=1000, input_shape=(3, 224, 224), pretrained=True)
    assert asked and not hub.constants.HF_HUB_OFFLINE and "Retry" not in caplog.text


@pytest.mark.parametrize("answers", [True, False])
def test_weights_in_the_hubs_cache_are_taken_without_asking_again(answers, monkeypatch):
    timm = pytest.importorskip("timm")
    hub = pytest.importorskip("huggingface_hub")
    own, offline = timm.create_model("resnet18").state_dict(), []

    def refuse(*_args, **_options):
        raise ConnectionError("Name or service not known")

    def cached(*_args, **_options):
        offline.append(hub.is_offline_mode())
        return own

    monkeypatch.setattr(hub.HfApi, "model_info", (lambda *a, **k: None) if answers else refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", cached)
    found = build("timm:resnet18", num_classes=1000, input_shape=(3, 32, 32), pretrained=True)
    assert offline == [not answers] and not hub.is_offline_mode()
    assert torch.equal(found.state()["conv1.weight"], own["conv1.weight"])


@pytest.mark.parametrize(
    "name, options, to_bring",
    [
        ("torchvision:resnet18", {"weights": "IMAGENET1K_V1"}, r"bring resnet18-f37072fd.pth into"),
        (
            "torchvision:resnet18",
            {"weights": "DEFAULT"},
            r"bring resnet18-f37072fd.pth into .*/hub",
        ),
        ("torchvision:resnet18", {"pretrained": True}, "bring resnet18-f37072fd.pth into"),
        ("torchvision:resnet50", {"pretrained": True}, "bring resnet50-11ad3fa6.pth into"),
        ("torchvision:resnet50", {"pretrained": "IMAGENET1K_V1"}, "bring resnet50-0676ba61.pth"),
        ("timm:resnet18", {"pretrained": True}, "bring the repository 'timm/resnet18"),
        (
            "timm:resnet18",
            {"pretrained": "tv_in1k"},
            "bring the repository 'timm/resnet18.tv_in1k'",
        ),
    ],
)
def test_pretrained_weights_offline(name, options, to_bring, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    if name.startswith("timm"):
        pytest.importorskip("timm")
        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", _no_network)
    with pytest.raises(FulaError, match=f"weights of '{name}' could not be .*{to_bring}") as error:
        build(name, num_classes=1000, input_shape=(3, 32, 32), **options)
    assert "give a checkpoint" in str(error.value) and "\n" not in str(error.value)


@torch.no_grad()
def test_timms_weights_of_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    reference = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10).eval()
    torch.save(reference.state_dict(), tmp_path / "a.pth")
    file = str(tmp_path / "a.pth")
    asked = {"num_classes": 10, "input_shape": (3, 224, 224), "depth": 2, "pretrained": file}
    ours = build("timm:vit_tiny_patch16_224", **asked).eval()
    assert torch.equal(ours(x := _x(1, 3, 224, 224)), reference(x))
    with pytest.raises(FulaError, match=r"another variant: .*blocks.2.* in all\)") as caught:
        build("timm:vit_tiny_patch16_224", **asked | {"depth": 3})
    assert str(caught.value).count("blocks.2.") == 3 and "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("nested", [(), ("model",), ("state_dict",), ("ema",), ("ema", "module")])
def test_files_of_weights_as_trainers_write_them(prefix, nested, tmp_path):
    torch.manual_seed(0)
    asked = {"num_classes": 10, "input_shape": (3, 32, 32)}
    reference = build("torchvision:squeezenet1_1", **asked)
    content = {prefix + n: v for n, v in reference.state().items()}
    for key in reversed(nested):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    found = load_checkpoint(tmp_path / "a.pt", into=build("torchvision:squeezenet1_1", **asked))
    assert all(torch.equal(v, reference.state()[n]) for n, v in found.state().items())


def test_weights_of_another_variant_name_three_that_differ(tmp_path):
    asked = {"num_classes": 10, "input_shape": (3, 32, 32)}
    small = torchvision.models.resnet18(num_classes=10)
    torch.save(small.state_dict(), tmp_path / "18.pt")
    with pytest.raises(FulaError, match=r"it lacks layer1.2.conv1.weight, .* \(\d+ in all\)"):
        load_checkpoint(tmp_path / "18.pt", into=build("torchvision:resnet34", **asked))
    wide = torchvision.models.resnet18(num_classes=10)
    for name in ("layer1", "layer2", "layer3"):
        getattr(wide, name)[0].conv1 = torch.nn.Conv2d(2, 3, 1, bias=False)
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    said = r"'layer1.0.conv1.weight' has shape .*\(layer2.0.conv1.weight, layer3.0.conv1.weight "
    with pytest.raises(FulaError, match=said + r"differ too, 3 in all\)"):
        load_checkpoint(tmp_path / "wide.pt", into=build("torchvision:resnet18", **asked))


@pytest.mark.parametrize(
    "name, side, options, said",
    [
        ("torchvision:vit_b_32", 40, {}, "sizes that fit: 32, 64, 96"),
        ("torchvision:vit_b_32", 64, {"num_classes": 1000, "pretrained": True}, "fit: 224$"),
    ],
)
def test_sizes_that_fit_are_named(name, side, options, said):
    with pytest.raises(FulaError, match=said):
        build(name, **{"num_classes": 10, "input_shape": (3, side, side), **options})


def test_sizes_that_fit_a_module_of_ones_own():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.image_size = 40
            self.patch = torch.nn.Conv2d(3, 8, 4, 4)
            self.place = torch.nn.Parameter(torch.zeros(8, 10, 10))
            self.block = torch.nn.ReLU()
            self.head = torch.nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.block(self.patch(x) + self.place).mean((2, 3)))

    cut = {"sites": ["block"], "channels": "first"}
    assert stages(Fixed(), input_shape=(3, 40, 40), **cut).num_classes == 5
    with pytest.raises(FulaError, match=r"images of 32 pixels \(.*must match.*sizes that fit: 40:"):
        stages(Fixed(), input_shape=(3, 32, 32), **cut)


def test_no_classes_are_the_librarys_own():
    asked = {"num_classes": 0, "input_shape": (3, 32, 32)}
    assert build("torchvision:squeezenet1_1", **asked).num_classes == 1000
    with pytest.raises(FulaError, match="num_classes of at least 2, not 0"):
        build("resnet18", **asked)


@torch.no_grad()
def test_a_model_that_timm_keeps_without_a_classifier_gives_embeddings(tmp_path):
    """DINOv2's, where no classes are asked for; its file builds it so again."""
    timm = pytest.importorskip("timm")
    name, shape = "vit_small_patch14_dinov2", (3, 28, 28)
    ours = build(f"timm:{name}", num_classes=0, input_shape=shape).eval()
    theirs = timm.create_model(name, img_size=28).eval()
    theirs.load_state_dict(ours.state())
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert not ours.classifies and ours.num_classes == theirs.num_features == 384
    save_checkpoint(ours, tmp_path / "a.safetensors")
    again = load_checkpoint(tmp_path / "a.safetensors")
    assert not again.classifies and torch.equal(again(x), ours(x))
    assert build(f"timm:{name}", num_classes=10, input_shape=shape).classifies
