"""Our ResNets and VGGs against torchvision's, and the rules of sites."""

import copy

import pytest
import torch
import torchvision

from fula_fast.errors import FulaError
from fula_fast.models import Norm2d, build, describe

STOCK = [
    ("resnet18", "resnet18", (3, 64, 64), {}),
    ("resnet34", "resnet34", (3, 64, 64), {}),
    ("resnet50", "resnet50", (3, 64, 64), {}),
    pytest.param("vgg16", "vgg16_bn", (3, 32, 32), {"batch_norm": True}, marks=pytest.mark.slow),
    pytest.param("vgg19", "vgg19", (3, 32, 32), {"batch_norm": False}, marks=pytest.mark.slow),
]


def _images(shape, count=2):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def _moved(model):
    """Running statistics and affine parameters away from 0 and 1."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            module.running_var.mul_(1 + torch.rand(module.running_var.shape, generator=generator))
    return model


@pytest.mark.parametrize("name, theirs, shape, options", STOCK)
def test_stock_model_is_torchvisions(name, theirs, shape, options):
    """Same seed, same names, same weights; same state dict, same logits."""
    torch.manual_seed(3)
    reference = getattr(torchvision.models, theirs)(num_classes=7)
    torch.manual_seed(3)
    ours = build(name, num_classes=7, input_shape=shape, stem="stock", **options)
    assert list(ours.state()) == list(reference.state_dict())
    for value, expected in zip(ours.state().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(value, expected)
    ours.load_state(_moved(reference).state_dict())
    x = _images(shape)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name, batch_norm", [("vgg16", True), ("vgg19", False)])
def test_stock_vgg_has_torchvisions_names_and_shapes(name, batch_norm):
    with torch.device("meta"):
        reference = getattr(torchvision.models, name + "_bn" * batch_norm)(num_classes=7)
        request = {"num_classes": 7, "input_shape": (3, 224, 224), "batch_norm": batch_norm}
        ours = build(name, stem="stock", **request)
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in ours.state().items()} == shapes


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_lowres_resnet_is_torchvisions_with_another_stem(name):
    reference = getattr(torchvision.models, name)(num_classes=10)
    reference.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool = torch.nn.Identity()
    ours = build(name, num_classes=10, input_shape=(3, 32, 32))
    ours.load_state(_moved(reference).state_dict())
    x = _images((3, 32, 32))
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x), rtol=1e-6, atol=1e-6)


SITES = {
    "resnet18": "stem layer1.0 layer1.1 layer2.0 layer2.1 layer3.0 layer3.1 layer4.0 layer4.1",
    "resnet34": "stem layer1.0 layer1.2 layer2.0 layer2.3 layer3.0 layer3.5 layer4.0 layer4.2",
    "resnet50": "stem layer1.0 layer1.2 layer2.0 layer2.3 layer3.0 layer3.5 layer4.0 layer4.2",
}


@pytest.mark.parametrize("name", SITES)
def test_lowres_resnet_has_nine_sites(name):
    model = build(name, num_classes=10, input_shape=(3, 32, 32), width=8)
    assert model.site_names == tuple(SITES[name].split())
    widths = [8] + [8 * 2**i * (4 if name == "resnet50" else 1) for i in range(4) for _ in "ab"]
    sides = [32, 32, 32, 16, 16, 8, 8, 4, 4]
    assert model.site_shapes == tuple((c, s, s) for c, s in zip(widths, sides, strict=True))


def test_stock_resnet_sites_are_the_second_papers():
    model = build("resnet18", num_classes=10, input_shape=(3, 28, 28), stem="stock")
    assert model.site_names == ("maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
    shapes = ((64, 7, 7), (64, 7, 7), (128, 4, 4), (256, 2, 2), (512, 1, 1), (512,))
    assert model.site_shapes == shapes


def test_vgg_sites_lie_behind_the_relu_of_their_convolution():
    sixteen = build("vgg16", num_classes=10, input_shape=(3, 32, 32), width=8)
    assert [shape[1] for shape in sixteen.site_shapes] == [32, 32, 16, 8, 4, 2]
    nineteen = build("vgg19", num_classes=10, input_shape=(3, 32, 32), width=8, batch_norm=False)
    assert nineteen.site_names == tuple(f"features.{child}" for child in (1, 8, 22, 29, 35))


def test_vgg_site_activations_are_torchvisions_children():
    layers = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]
    reference = torchvision.models.vgg.make_layers(layers)
    ours = build("vgg19", num_classes=10, input_shape=(3, 32, 32), batch_norm=False)
    classifier = {k: v for k, v in ours.state().items() if k.startswith("classifier")}
    features = {f"features.{name}": value for name, value in reference.state_dict().items()}
    ours.load_state(features | classifier)
    x = _images((3, 32, 32), 1)
    for site, child in enumerate((1, 8, 22, 29, 35), 1):
        torch.testing.assert_close(ours.run(x, 0, site), reference[: child + 1](x))


CASES = [
    ("resnet18", (3, 16, 16), {}),
    ("resnet18", (1, 28, 28), {"stem": "stock"}),
    ("resnet50", (3, 16, 16), {"residuals": False}),
    ("vgg16", (3, 32, 32), {}),
    ("vgg19", (3, 32, 32), {"batch_norm": False}),
]


@pytest.mark.parametrize("name, shape, options", CASES)
def test_hooks_and_cuts_leave_the_logits(name, shape, options):
    """Any cut composes to the full forward pass; pre_relu and post_relu are the same function."""
    options = {"num_classes": 5, "input_shape": shape, "width": 4, **options}
    after = _moved(build(name, **options)).eval()
    before = build(name, hook="pre_relu", **options).eval()
    before.load_state(after.state())
    x = _images(shape)
    for model in (after, before):
        for site in (0, 1, model.num_sites):
            composed = model.head(model.run(model.run(x, 0, site), site))
            assert torch.equal(composed, model(x))
    assert torch.equal(before(x), after(x))
    assert before.num_sites == after.num_sites
    for site, found in enumerate(after.site_shapes, 1):
        if len(found) == 3:  # a vector behind the average pool has no ReLU of its own
            at = before.run(x, 0, site)
            assert at.min() < 0
            assert torch.equal(at.relu(), after.run(x, 0, site))


def test_a_site_survives_the_next_stage():
    """Stages do not write into their input."""
    for hook in ("post_relu", "pre_relu"):
        model = build("resnet18", num_classes=5, input_shape=(3, 16, 16), width=4, hook=hook)
        sites = [model.run(_images((3, 16, 16)), 0, k) for k in range(1, model.num_sites + 1)]
        for x, stage in zip(sites, [*model.stages[1:], model.head], strict=True):
            kept = x.clone()
            stage(x)
            assert torch.equal(x, kept)


def test_without_residuals_there_is_no_skip():
    """A plain convolutional network: against its own composition."""
    model = build("resnet18", num_classes=4, input_shape=(3, 16, 16), width=4, residuals=False)
    names = list(model.state())
    assert not any("downsample" in name for name in names)
    model = _moved(model).eval()
    state = model.state()
    x = model.run(_images((3, 16, 16)), 0, 3)
    y = x
    for i, stride in ((1, 2), (2, 1)):
        y = torch.nn.functional.conv2d(y, state[f"layer2.0.conv{i}.weight"], None, stride, 1)
        parts = ("running_mean", "running_var", "weight", "bias")
        y = torch.nn.functional.batch_norm(y, *(state[f"layer2.0.bn{i}.{p}"] for p in parts))
        y = y.relu()
    torch.testing.assert_close(model.stages[3](x), y)


def test_norm_fuses_sum_and_relu():
    norm = Norm2d(3).train()
    x, residual = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    plain = torch.nn.BatchNorm2d(3).train()
    expected = torch.relu(plain(x) + residual)
    assert torch.equal(norm(x, residual=residual, relu=True), expected)
    assert torch.equal(norm.running_var, plain.running_var)


def test_models_copy_and_norms_may_be_replaced():
    model = build("resnet18", num_classes=4, input_shape=(3, 16, 16), width=4)
    twin = copy.deepcopy(model)
    stem = twin.stages[0]
    stem.bn1 = torch.nn.Module()
    stem.bn1.forward = lambda x, relu: torch.zeros_like(x)
    x = _images((3, 16, 16))
    assert twin.run(x, 0, 1).count_nonzero() == 0
    assert model.run(x, 0, 1).count_nonzero() > 0


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("resnet81", {}, "unknown model 'resnet81'; did you mean 'resnet18'?"),
        ("resnet18", {"widht": 8}, "no option 'widht'; did you mean 'width'?"),
        ("resnet18", {"width": 0}, "width = 0 .* at least 1"),
        ("resnet18", {"stem": "high"}, "stem 'high'"),
        ("resnet18", {"residuals": 1}, "must be true or false"),
        ("resnet18", {"hook": "relu"}, "hook 'relu' is unknown"),
        ("resnet18", {"num_classes": 1}, "num_classes of at least 2"),
        ("resnet18", {"input_shape": (32, 32)}, "channels, height, width"),
        ("vgg16", {"input_shape": (1, 28, 28)}, "too small: layer 'features.43' gets 1 pixels"),
    ],
)
def test_mistakes_are_explained(name, change, message):
    request = {"num_classes": 10, "input_shape": (3, 32, 32), **change}
    for make in (build, describe):
        with pytest.raises(FulaError, match=message):
            make(name, **request)
