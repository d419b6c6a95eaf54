"""The stitch: every form of the affine map, written out again in NumPy and plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fula_fast.errors import FulaError
from fula_fast.stitching.bilinear import Bilinear, _kron
from fula_fast.stitching.stitch import Geometry, Stitch, from_rows, kind, resize, to_rows

CONV, SMALL, TOKEN, VECTOR = (3, 4, 4), (5, 2, 2), (16, 6), (7,)


def filled(source, target, seed=0, **options) -> Stitch:
    """A float64 stitch with every parameter random."""
    stitch = Stitch(source, target, **options).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stitch.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return stitch


def images(shape, count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def plain(stitch):
    return {name: p.detach().numpy() for name, p in stitch.named_parameters()}


@pytest.mark.parametrize(
    ("source", "target", "formula"),
    [
        ((3, 4, 4), (5, 4, 4), "oc,bchw->bohw"),
        ((16, 6), (16, 4), "oc,bnc->bno"),
        ((7,), (2,), "oc,bc->bo"),
    ],
)
def test_like_forms_are_one_product_over_features(source, target, formula):
    stitch, x = filled(source, target), images(source)
    p = plain(stitch)
    bias = p["bias"].reshape(-1, 1, 1) if len(target) == 3 else p["bias"]
    expected = np.einsum(formula, p["weight"], x.numpy()) + bias
    np.testing.assert_allclose(stitch(x).detach(), expected, rtol=1e-12, atol=1e-13)
    assert Geometry(source, target).like and set(p) == {"weight", "bias"}


UNLIKE = [
    (CONV, TOKEN), (CONV, VECTOR), (TOKEN, SMALL), (TOKEN, VECTOR), (VECTOR, SMALL),
    (VECTOR, TOKEN), ((9, 6), TOKEN),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), UNLIKE)
def test_unlike_forms_map_features_then_positions(source, target):
    stitch, x = filled(source, target), images(source)
    p = plain(stitch)
    rows = {
        3: lambda a: a.reshape(*a.shape[:2], -1).swapaxes(1, 2),
        2: lambda a: a,
        1: lambda a: a[:, None],
    }
    features = rows[len(source)](x.numpy()) @ p["weight"].T + p["bias"]
    mapped = np.einsum("qp,bpf->bqf", p["position_weight"], features)
    mapped += p["position_bias"][:, None]
    got = rows[len(target)](stitch(x).detach().numpy())
    np.testing.assert_allclose(got, mapped, rtol=1e-11, atol=1e-12)
    assert stitch(x).shape == (3, *target) and not Geometry(source, target).like


@pytest.mark.parametrize("shape", [CONV, TOKEN, VECTOR])
def test_rows_and_back(shape):
    x = images(shape)
    assert torch.equal(from_rows(to_rows(x), shape), x)


@pytest.mark.parametrize(
    ("source", "target"), [((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3, 6, 6), (2, 4, 5))]
)
def test_multiplying_at_the_smaller_resolution_equals_resizing_first(source, target):
    """A biased 1x1 convolution and a bilinear resize commute: exact in float64."""
    stitch, x = filled(source, target), images(source)
    first = F.interpolate(x, size=target[1:], mode="bilinear", align_corners=False)
    expected = F.conv2d(first, stitch.weight[:, :, None, None], stitch.bias)
    torch.testing.assert_close(stitch(x), expected, rtol=1e-12, atol=1e-12)


def test_the_product_runs_at_the_smaller_resolution(monkeypatch):
    seen = []
    product = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest: seen.append(x.shape[-1]) or product(x, *rest))
    filled((3, 8, 8), (5, 4, 4))(images((3, 8, 8)))
    filled((3, 4, 4), (5, 8, 8))(images((3, 4, 4)))
    assert seen == [4, 4]


def test_resize_is_bilinear_without_antialias_or_aligned_corners():
    ramp = torch.arange(4.0)[None, None, None].expand(1, 1, 4, 4)
    assert resize(ramp, (4, 2))[0, 0, 0].tolist() == [0.5, 2.5]
    assert resize(ramp, (4, 8))[0, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert resize(ramp, (4, 4)) is ramp


@pytest.mark.parametrize(
    ("source", "target"),
    [((3, 4, 4), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((16, 6), (16, 4)), ((7,), (2,))],
)
def test_batch_norms_on_both_sides(source, target):
    """BN, map, BN (Smith et al.), at the end's resolution, as torch's own layers compute it."""
    stitch, x = filled(source, target, batchnorm=True).train(), images(source, count=6)
    kinds = {3: nn.BatchNorm2d, 2: nn.BatchNorm1d, 1: nn.BatchNorm1d}
    layers = [kinds[len(source)](stitch.weight.shape[k]).double().train() for k in (1, 0)]
    for layer, own in zip(layers, (stitch.norm_in, stitch.norm_out), strict=True):
        layer.load_state_dict(own.state_dict())
    expected = x
    if source[1:] != target[1:] and len(source) == 3:
        expected = F.interpolate(x, size=target[1:], mode="bilinear", align_corners=False)
    tokens = len(source) == 2
    swap = (lambda t: t.transpose(1, 2)) if tokens else (lambda t: t)
    expected = swap(layers[0](swap(expected)))
    expected = (
        F.conv2d(expected, stitch.weight[:, :, None, None], stitch.bias)
        if len(source) == 3
        else F.linear(expected, stitch.weight, stitch.bias)
    )
    expected = swap(layers[1](swap(expected)))
    torch.testing.assert_close(stitch(x), expected, rtol=1e-11, atol=1e-11)
    for layer, own in zip(layers, (stitch.norm_in, stitch.norm_out), strict=True):
        torch.testing.assert_close(own.running_mean, layer.running_mean)
        torch.testing.assert_close(own.running_var, layer.running_var)


def test_the_bias_may_be_dropped_between_batch_norms():
    stitch = Stitch(CONV, CONV, batchnorm=True, bias=False)
    assert set(dict(stitch.named_parameters())) == {
        "weight", "norm_in.weight", "norm_in.bias", "norm_out.weight", "norm_out.bias"
    }  # fmt: skip


def test_identity():
    x = images(CONV)
    assert torch.equal(Stitch(CONV, CONV).double().initialise("identity", 0)(x), x)
    with pytest.raises(FulaError, match=r"init = 'identity' needs sites of one form"):
        Stitch(CONV, TOKEN).initialise("identity", 0)


@pytest.mark.parametrize(("source", "target"), [(CONV, SMALL), (CONV, TOKEN)])
def test_random_values_depend_on_the_seed_alone(source, target):
    torch.manual_seed(0)
    first = Stitch(source, target).initialise("random", 5)
    torch.manual_seed(1)
    second = Stitch(source, target).initialise("random", 5)
    third = Stitch(source, target).initialise("random", 6)
    for name, value in first.named_parameters():
        assert torch.equal(value, dict(second.named_parameters())[name])
        assert not torch.equal(value, dict(third.named_parameters())[name])
        fan_in = first.position_weight.shape[1] if "position" in name else source[0]
        assert value.abs().max() <= fan_in**-0.5
    uniform = np.random.Generator(np.random.Philox(key=5)).uniform(
        -(source[0] ** -0.5), source[0] ** -0.5, first.weight.shape
    )
    np.testing.assert_array_equal(first.weight.detach(), uniform.astype(np.float32))


def test_assigning_a_map_keeps_the_parameters_themselves():
    stitch = Stitch(VECTOR, (2,))
    before = stitch.weight
    stitch.assign(np.full((2, 7), 0.5), np.array([1.0, 2.0]))
    assert stitch.weight is before
    assert stitch(torch.ones(1, 7)).tolist() == [[4.5, 5.5]]


def test_forms():
    assert [kind(s) for s in (CONV, TOKEN, VECTOR)] == ["conv", "token", "vector"]
    with pytest.raises(FulaError, match=r"\(2, 3, 4, 5\) is none of"):
        kind((2, 3, 4, 5))
    conv = Geometry((3, 8, 8), (5, 4, 4))
    assert conv.like and conv.resizes and conv.shrinks and not conv.maps_positions
    assert not Geometry((3, 4, 4), (5, 8, 8)).shrinks
    assert not Geometry((9, 6), (16, 6)).like  # another number of tokens
    assert Geometry(CONV, TOKEN).position_shape == (16, 16)
    assert Geometry(VECTOR, CONV).position_shape == (16, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((4, 4), (8, 8)),
        ((8, 6), (2, 3)),
        ((3, 5), (7, 4)),
        ((4, 4), (32, 32)),
        ((20, 18), (28, 21)),
    ],
)
def test_the_gpus_resize_has_pytorchs_value_and_gradient(before, after, dtype):
    """Its code on a CPU, where PyTorch's own gradient has one order; the largest are beyond one
    product over all pixels. bfloat16 differs by roundings of the value, of the matrix' numbers
    (7 and 5 do not divide evenly), and between two products."""
    x = torch.randn(2, 3, *before).to(dtype).requires_grad_()
    weight = torch.randn(2, 3, *after).to(dtype)
    exact = x.detach().double().requires_grad_()
    ours, theirs = Bilinear.apply(x, after), resize(exact, after)
    (mine,) = torch.autograd.grad((ours * weight).sum(), x)
    (own,) = torch.autograd.grad((theirs * weight.double()).sum(), exact)
    error = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 6e-3}[dtype]
    for found, expected in ((ours, theirs), (mine, own)):
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= error * expected.norm()


@pytest.mark.parametrize("after", [(8, 8), (16, 16), (32, 32)])
def test_the_matrix_of_a_resize_by_powers_of_two_is_exact_in_bfloat16(after):
    exact = _kron((4, 4), after, torch.float64, torch.device("cpu"))
    assert torch.equal(exact.bfloat16().double(), exact)
