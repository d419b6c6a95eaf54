"""`lane_conv`: the reference against PyTorch's own layers and finite differences; the Triton kernels
against the reference, in the interpreter (`test_interpreter.py`) and on a device."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F

import fula_fast.kernels as K
from fula_fast.kernels import backend

pytestmark = [
    # the interpreter of older releases turns one-element arrays into numbers
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0"),
    # opcheck looks at .grad of the copies that it makes of inputs
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def _norm(make, lanes: int, channels: int, grad: bool = True) -> dict[str, torch.Tensor]:
    """A norm that lets through about half of what it is given."""
    return {
        "gain": make.wide(channels).abs() + 0.5,
        "bias": make.wide(channels) / 4,
        "mean": (make.wide(lanes, channels) / 2).requires_grad_(grad),
        "var": (make.wide(lanes, channels).abs() + 0.5).requires_grad_(grad),
    }


# kernel, stride, padding
GEOMETRIES = [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (2, 3, 1)]


@pytest.mark.parametrize("kernel,stride,padding", GEOMETRIES)
@pytest.mark.parametrize("normed", [True, False])
def test_it_is_batch_norm_relu_and_convolution_a_lane(maker, kernel, stride, padding, normed):
    make, lanes, samples = maker(), 3, 4
    x, weight = make(lanes * samples, 5, 6, 5), make(7, 5, kernel, kernel)
    norm = _norm(make, lanes, 5, grad=False) if normed else {}
    with backend.using("reference"):
        y, mean, var = K.lane_conv(
            x, weight, lanes=lanes, stride=stride, padding=padding, eps=1e-3, **norm
        )
    for lane in range(lanes):
        part = slice(lane * samples, (lane + 1) * samples)
        h = x[part]
        if normed:
            moments = norm["mean"][lane], norm["var"][lane]
            h = F.batch_norm(h, *moments, norm["gain"], norm["bias"], eps=1e-3).relu()
        want = F.conv2d(h, weight, None, stride, padding)
        torch.testing.assert_close(y[part], want)
        torch.testing.assert_close(mean[lane], want.mean((0, 2, 3)))
        torch.testing.assert_close(var[lane], want.var((0, 2, 3), correction=0))


def test_gradients_are_those_of_finite_differences(maker):
    make = maker()
    weight, norm = make(3, 2, 3, 3), _norm(make, 2, 2)

    def call(x, mean, var):
        given = {**norm, "mean": mean, "var": var}
        with backend.using("reference"):
            return K.lane_conv(x, weight, lanes=2, stride=2, padding=1, eps=1e-3, **given)

    assert torch.autograd.gradcheck(call, [make(4, 2, 4, 3, grad=True), norm["mean"], norm["var"]])


@pytest.mark.parametrize("name", ["reference", "cpp"])
@pytest.mark.parametrize("residual,target", [(0, 0), (1, 1)])
def test_a_norm_of_given_statistics_has_the_gradient_of_one_that_takes_its_own(
    maker, name, residual, target
):
    """conv - norm - ReLU, both ways: what makes the fused blocks of the engine exact."""
    if name == "cpp" and "lane_norm" not in backend._CORE_NOUNS:
        pytest.skip("this build has no C++ lane_norm")
    make, lanes = maker(), 2
    x, weight = make(6, 3, 4, 5, grad=True), make(4, 3, 3, 3)
    gain, bias, unread = make(4), make(4), make(lanes, 4)
    extras = {
        "residual": make(6, 4, 4, 5) if residual else None,
        "target": make(3, 4, 4, 5) if target else None,
    }
    found = []
    for own in (True, False):
        with backend.using(name):
            y, mean, var = K.lane_conv(x, weight, lanes=lanes, padding=1)
            moments = (unread, unread) if own else (mean, var)
            z, *_, dist2 = K.lane_norm(
                y, gain, bias, *moments, lanes=lanes, training=own, eps=1e-5, relu=True, **extras
            )
            total = z.square().sum() + (dist2.square().sum() if target else 0)
            found.append([z, *torch.autograd.grad(total, x)])
    for given, taken in zip(*found, strict=True):
        torch.testing.assert_close(given, taken, rtol=1e-10, atol=1e-10)


# (lanes, samples, c1, c2, height, width), dtype, layout, kernel, stride, padding, norm
CASES = [
    ((2, 3, 5, 7, 4, 3), "f32", "last", 3, 1, 1, 1),
    ((2, 3, 5, 7, 4, 3), "f32", "first", 3, 2, 1, 1),
    ((1, 3, 20, 18, 5, 5), "bf16", "last", 3, 1, 1, 1),
    ((3, 2, 17, 33, 5, 4), "bf16", "last", 3, 2, 1, 1),
    ((2, 2, 33, 6, 4, 4), "bf16", "gaps", 3, 1, 1, 0),
    ((2, 2, 6, 9, 5, 3), "f16", "last", 1, 2, 0, 1),
    ((2, 5, 8, 4, 3, 3), "f32", "last", 1, 1, 0, 0),
    ((1, 1, 3, 2, 1, 1), "bf16", "last", 3, 1, 1, 1),
    ((2, 2, 4, 4, 7, 5), "f32", "last", 2, 3, 1, 1),
]


def _check(maker, agree, device, sizes, name, layout, kernel, stride, padding, normed):
    lanes, samples, c1, c2, height, width = sizes
    make = maker(DTYPES[name], layout)
    weight = (maker()(c2, c1, kernel, kernel) / (c1 * kernel**2) ** 0.5).to(DTYPES[name])
    norm = _norm(make, lanes, c1) if normed else {}
    inputs = [make(lanes * samples, c1, height, width, grad=True, shift=0.5), weight]

    def call(x, weight, *norm):
        given = dict(zip(("gain", "bias", "mean", "var"), norm, strict=True)) if norm else {}
        return K.lane_conv(
            x, weight, lanes=lanes, stride=stride, padding=padding, eps=1e-5, **given
        )

    # what comes to the norm has been rounded with the whole gradient at y
    passed_on = (4, 5) if normed else ()
    agree(call, [*inputs, *norm.values()], "triton", device, passed_on=passed_on)


@pytest.fixture
def small_tiles():
    """So small that tiny tensors need several, edges included."""
    pytest.importorskip("triton")
    from fula_fast.kernels.shared import tiles

    small = tiles.Tile(16, 16, 16)
    with tiles.forced(lane_conv=small, lane_conv_gradient=small):
        yield


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c[1:])))
def test_lane_conv(maker, agree, device, case):
    _check(maker, agree, device, *case)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name,stride", [("f32", 2), ("bf16", 1)])
def test_a_fork_adds_the_other_branch_s_gradient(maker, agree, device, name, stride):
    make = maker(DTYPES[name])
    weight = (maker()(5, 6, 3, 3) / 54**0.5).to(DTYPES[name])

    def call(x, weight):
        *out, again = K.lane_conv_fork(x, weight, lanes=2, stride=stride, padding=1)
        return *out, again * 3

    agree(call, [make(6, 6, 5, 3, grad=True), weight], "triton", device)


@pytest.mark.usefixtures("small_tiles")
def test_lane_conv_passes_opcheck(maker, device):
    make = maker(torch.float32)
    norm = [t.to(device).detach() for t in _norm(make, 2, 3).values()]
    norm[2:] = (t.requires_grad_() for t in norm[2:])
    x, weight = make(4, 3, 4, 4).to(device).requires_grad_(), make(5, 3, 3, 3).to(device)
    for given in (norm, [None] * 4):
        arguments = (x, weight, *given, 2, 2, 1, 1e-5, "triton")
        opcheck(torch.ops.fula.lane_conv.default, arguments)


@pytest.mark.usefixtures("small_tiles")
def test_a_block_compiles_without_a_graph_break(maker, device):
    make = maker(torch.float32)
    x, weight = make(4, 4, 3, 3).to(device).requires_grad_(), make(4, 4, 3, 3).to(device)
    gain, bias = make(4).to(device), make(4).to(device)

    def block(x):
        y, *moments, again = K.lane_conv_fork(x, weight, lanes=2, padding=1)
        norm = dict(zip(("mean", "var"), moments, strict=True), gain=gain, bias=bias, eps=1e-5)
        z, mean, var = K.lane_conv(y, weight, lanes=2, padding=1, **norm)
        return K.lane_norm(
            z, gain, bias, mean, var, lanes=2, training=False, eps=1e-5, residual=again, relu=True
        )[0]

    found = []
    torch._dynamo.reset()
    with backend.using("triton"):
        for run in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
            y = run(x)
            found.append([y, *torch.autograd.grad(y.square().sum(), x)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["f32", "bf16"])
@pytest.mark.parametrize("geometry", [(3, 1, 1), (3, 2, 1), (1, 2, 0)])
@pytest.mark.parametrize("sizes", [(3, 8, 64, 64, 32, 32), (2, 16, 256, 512, 8, 8)])
def test_lane_conv_with_its_own_tiles(maker, agree, sizes, name, geometry):
    _check(maker, agree, "cuda", sizes, name, "last", *geometry, 1)
