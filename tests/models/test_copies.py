"""Modules that plain `copy.deepcopy` refuses, and those that must."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from fula_fast.attacks import robust_evaluate
from fula_fast.errors import FulaError
from fula_fast.models import stages
from fula_fast.models.copies import private_copy


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.b(self.a(x).relu()).mean((2, 3))


class Keeping(Net):
    """Keeps an activation as an attribute."""

    def forward(self, x):
        self.last = self.a(x)
        return self.b(self.last.relu()).mean((2, 3))


def by_attribute():
    return Keeping()


def by_hook():
    net = Net()
    net.a.register_forward_hook(lambda module, given, out: setattr(module, "seen", out))
    return net


def in_a_list_and_a_table():
    net = Net()
    net.kept, net.by_name = [], {"a": ()}

    def keep(module, given, out):
        net.kept.append(out)
        net.by_name["a"] = (out,)

    net.a.register_forward_hook(keep)
    return net


@pytest.mark.parametrize("make", [by_attribute, by_hook, in_a_list_and_a_table])
def test_activations_left_on_a_module_are_detached(make):
    net, x = make(), torch.rand(2, 3, 8, 8)
    expected = net(x)
    with pytest.raises(RuntimeError):
        copy.deepcopy(net)
    twin = private_copy(net)
    assert torch.equal(twin(x), expected)
    assert all(p is not q for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    net(x)
    staged = stages(net, ["a"], input_shape=(3, 8, 8))
    torch.testing.assert_close(staged(x), expected)
    net(x)
    images, labels = np.full((2, 3, 8, 8), 0.5, np.float32), np.array([0, 1])
    assert len(robust_evaluate(net, images, labels, "pgd-1", eps=0.01)) == 1


def test_the_values_of_a_detached_activation_stay():
    net = Keeping()
    net(torch.rand(1, 3, 8, 8))
    twin = private_copy(net)
    assert torch.equal(twin.last, net.last) and not twin.last.requires_grad


@pytest.mark.parametrize(
    "value", [threading.Lock(), (i for i in ()), threading], ids=["lock", "generator", "module"]
)
def test_what_cannot_be_copied_is_named(value):
    net = Net()
    net.b.extra = value
    for call in (private_copy, lambda m: stages(m, ["a"], input_shape=(3, 8, 8))):
        with pytest.raises(FulaError, match=r"Net cannot be copied: its attribute 'b\.extra' is a"):
            call(net)
