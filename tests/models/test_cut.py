"""User modules cut by tracing: same function, same names; what is no chain is refused."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fula_fast.errors import FulaError
from fula_fast.models import Norm2d, stages


class Net(nn.Module):
    """A chain with in-place ReLUs, dropout, a constant, and parameters used outside submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor([0.25]))
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.Dropout())
        self.out = nn.Linear(6, 5)

    def forward(self, x, temperature=None, double=False):
        x = self.scale * self.first(x) + self.shift
        x = self.act(self.norm(x))
        x = self.block(x)
        if temperature is not None:
            x = x / temperature
        return self.out(self.shift + x.mean((2, 3)))


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        y = self.a(x)
        z = self.b(y)
        return self.c(z + y).flatten(1)


def _x(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_same_function_and_names():
    net = Net().eval()
    staged = stages(net, ["norm", "act", "block"], input_shape=(3, 8, 8))
    x = _x(2, 3, 8, 8)
    assert torch.equal(staged(x), net(x))
    assert staged.state().keys() == net.state_dict().keys()
    assert staged.site_shapes == ((4, 8, 8), (4, 8, 8), (6, 6, 6))
    assert (staged.num_classes, staged.name) == (5, "module:Net")


def test_sites_are_the_submodules_outputs_and_survive():
    net = Net().eval()
    staged = stages(net, ["norm", "act", "block"], input_shape=(3, 8, 8))
    seen = {}
    for name in staged.site_names:
        module = net.get_submodule(name)
        module.register_forward_hook(lambda m, i, y, name=name: seen.update({name: y.clone()}))
    x = _x(2, 3, 8, 8)
    net(x)
    sites = [staged.run(x, 0, k) for k in (1, 2, 3)]
    staged(x)
    for name, site in zip(staged.site_names, sites, strict=True):
        assert torch.equal(site, seen[name])
    assert sites[0].min() < 0, "an in-place ReLU changed the site before it"


def test_the_module_is_copied_and_keeps_its_mode():
    net = Net().train()
    before = copy.deepcopy(net.state_dict())
    staged = stages(net, ["block"], input_shape=(3, 8, 8))
    assert staged.training and net.training and net.act.inplace
    assert type(net.norm) is nn.BatchNorm2d
    with torch.no_grad():
        for value in staged.state().values():
            value.zero_()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert isinstance(staged.stages[0].norm, Norm2d)


def test_batch_statistics_and_copies():
    """Norms of a cut model behave as before in training mode, and copies do not share them."""
    net = Net()
    net.block[2].p = 0.0
    staged = stages(net, ["act"], input_shape=(3, 8, 8)).train()
    twin = copy.deepcopy(staged)
    x = _x(4, 3, 8, 8)
    assert torch.equal(staged(x), net.train()(x))
    assert torch.equal(staged.state()["norm.running_var"], net.norm.running_var)
    assert torch.equal(twin.state()["norm.running_var"], torch.ones(4))


def test_torchvision_resnet_cut_anywhere_along_its_chain():
    net = torchvision.models.resnet18(num_classes=10).eval()
    staged = stages(net, ["relu", "layer1.0", "layer2", "avgpool"], input_shape=(3, 32, 32))
    x = _x(2, 3, 32, 32)
    assert torch.equal(staged(x), net(x))
    assert list(staged.state()) == list(net.state_dict())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(12, 4)

    def forward(self, x):
        return self.a(self.a(self.b(x.flatten(1))))


class Branching(Twice):
    def forward(self, x):
        y = self.b(x.flatten(1))
        return self.a(y) if y.sum() > 0 else y


class Pair(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.LSTM(4, 4)

    def forward(self, x):
        return self.a(self.p(self.b(x.flatten(1)))[0])


class InPlace(Twice):
    def forward(self, x):
        return self.a(F.relu(self.b(x.flatten(1)), inplace=True))


@pytest.mark.parametrize(
    "net, sites, message",
    [
        (Skipping, ["b"], "no chain at site 'b': 'a' is still used behind it"),
        (Skipping, ["c", "a"], "order in which they run: a, c"),
        (Skipping, ["d"], "site 'd' is no submodule"),
        (Skipping, [], "no sites given"),
        (Skipping, ["a", "a"], "order in which they run"),
        (Twice, ["a"], "called 2 times"),
        (Branching, ["b"], "cannot be traced"),
        (Pair, ["p"], "'p' .* gives no tensor"),
        (InPlace, ["b"], "in place"),
    ],
)
def test_what_is_no_chain_is_refused(net, sites, message):
    shape = (3, 4, 4) if net is Skipping else (3, 2, 2)
    with pytest.raises(FulaError, match=message):
        stages(net(), sites, input_shape=shape)


def test_sites_inside_one_another_are_refused():
    with pytest.raises(FulaError, match="no site inside another"):
        stages(Net(), ["block.0", "block"], input_shape=(3, 8, 8))


def test_logits_and_classes_must_agree():
    with pytest.raises(FulaError, match="num_classes is 7"):
        stages(Net(), ["block"], input_shape=(3, 8, 8), num_classes=7)
    with pytest.raises(FulaError, match=r"does not run on an input of shape \[1, 8, 8\]"):
        stages(Net(), ["block"], input_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (torch.compile, "_orig_mod."),
        (nn.DataParallel, "module."),
        (lambda net: torch.compile(nn.DataParallel(net)), "_orig_mod.module."),
        (lambda net: nn.DataParallel(torch.compile(net)), "module._orig_mod."),
    ],
    ids=["compiled", "parallel", "compiled parallel", "parallel compiled"],
)
def test_compiled_and_parallel_modules_are_unwrapped(wrap, prefix):
    net, x = Net().eval(), _x(2, 3, 8, 8)
    for names in (["norm", "block"], [f"{prefix}norm", f"{prefix}block"]):
        staged = stages(wrap(net), names, input_shape=(3, 8, 8))
        assert staged.site_names == ("norm", "block")
        assert staged.name == "module:Net" and torch.equal(staged(x), net(x))
        assert staged.state().keys() == net.state_dict().keys()


class Answering(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.a, self.b = form, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.form(self.b(self.a(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("form", "kind"),
    [(lambda y: (y, y), "tuple"), (lambda y: {"out": y}, "dict"), (lambda y: [y], "list")],
)
def test_outputs_that_are_no_logits_say_what_to_return(form, kind):
    with pytest.raises(FulaError, match=f"returns a {kind}.*return the logits"):
        stages(Answering(form), ["a"], input_shape=(3, 8, 8))
