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

    small, rows = tiles.Tile(16, 16, 16), tiles.Tile(8, 8, 2)
    with tiles.forced(
        lane_conv=small, lane_conv_gradient=small, normalise=rows, sums=rows, joined_sums=rows
    ):
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


def _end(make, lanes: int, c1: int, c2: int, shortcut: bool):
    """Weights and norms of a block's end, (L*B, c1, H, W) to (L*B, c2, H, W)."""
    weights = (make(c2, c1, 3, 3) / (c1 * 9) ** 0.5,)
    vectors = [make.wide(c2) + 1, make.wide(c2) / 4]
    if shortcut:
        weights += (make(c2, 4, 1, 1) / 2,)
        vectors += [make.wide(c2) + 1, make.wide(c2) / 4]
    return weights, vectors, _norm(make, lanes, c1)


def _ended(x, residual, target, prior, norms, weights, lanes, relu=True, room=0):
    """(z, dist2, statistics) of `lane_conv_norm`; a projection has stride 2."""
    gain, bias, *more = norms
    projection = K.Projection(weights[1], 2, 0, K.Affine(*more, 1e-3)) if more else None
    z, dist2, moments = K.lane_conv_norm(
        x, weights[0], lanes=lanes, padding=1, **prior, eps=1e-5,
        norm=K.Affine(gain, bias, 1e-5), residual=residual, projection=projection, relu=relu,
        target=target, room=room,
    )  # fmt: skip
    assert not any(m.requires_grad for m in moments)
    return z, dist2, *moments


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_end_of_a_block_is_convolution_norm_shortcut_and_sum(maker, shortcut):
    make, lanes, samples = maker(), 2, 3
    weights, norms, prior = _end(make, lanes, 5, 6, shortcut)
    x, target = make(6, 5, 4, 4), make(3, 6, 4, 4)
    residual = make(6, 4, 8, 8) if shortcut else make(6, 6, 4, 4)
    with backend.using("reference"):
        given = {name: t.detach() for name, t in prior.items()}
        z, dist2, *moments = _ended(x, residual, target, given, norms, weights, lanes)
    for lane in range(lanes):
        part = slice(lane * samples, (lane + 1) * samples)
        before = given["mean"][lane], given["var"][lane], given["gain"], given["bias"]
        y = F.conv2d(F.batch_norm(x[part], *before, eps=1e-5).relu(), weights[0], padding=1)
        sum_ = F.batch_norm(y, None, None, *norms[:2], training=True, eps=1e-5)
        beside, maps = residual[part], [y]
        if shortcut:
            maps.append(F.conv2d(beside, weights[1], stride=2))
            beside = F.batch_norm(maps[1], None, None, *norms[2:], training=True, eps=1e-3)
        want = (sum_ + beside).relu()
        torch.testing.assert_close(z[part], want)
        torch.testing.assert_close(dist2[lane], (want - target).square().sum((1, 2, 3)))
        for pair, taken in zip((moments[:2], moments[2:]), maps, strict=False):
            torch.testing.assert_close(pair[0][lane], taken.mean((0, 2, 3)))
            torch.testing.assert_close(pair[1][lane], taken.var((0, 2, 3), correction=0))


# dtype, layout, residual, a norm before, ReLU, what a loss looks at
ENDS = [
    ("f32", "last", "same", 1, 1, "both"),
    ("f32", "last", "projected", 1, 0, "distance"),
    ("f32", "first", "none", 0, 1, "z beside a target"),
    ("bf16", "gaps", "projected", 1, 1, "both"),
    ("bf16", "last", "same", 1, 1, "z"),
    ("f16", "last", "projected", 0, 0, "both"),
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", ENDS, ids=lambda case: "-".join(map(str, case)))
def test_the_end_of_a_block(maker, agree, device, case):
    name, layout, kind, normed, relu, used = case
    make, lanes, projected = maker(DTYPES[name], layout), 2, kind == "projected"
    weights, norms, prior = _end(make, lanes, 17, 18, projected)
    sizes = (6, 4, 9, 7) if projected else (6, 18, 5, 4)
    residual = None if kind == "none" else make(*sizes, grad=True)
    target = None if used == "z" else make(3, 18, 5, 4)
    before = list(prior.values()) if normed else []

    def call(x, residual, target, *rest):
        norms, rest = rest[: 2 + 2 * projected], rest[2 + 2 * projected :]
        weights, given = rest[: 1 + projected], rest[1 + projected :]
        given = dict(zip(prior, given, strict=True)) if given else {}
        z, dist2, *moments = _ended(
            x, residual, target, given, norms, weights, lanes, relu=bool(relu)
        )
        z = z.detach() if used == "distance" else z
        dist2 = dist2.detach() if used == "z beside a target" else dist2
        return z, dist2, *moments

    x = make(6, 17, 5, 4, grad=True, shift=0.3)
    values = 1 + (target is not None) + 2 * (1 + projected)
    # d is stored before it is scaled, and what comes to statistics follows
    passed_on = range(values, values + 4) if name != "f32" else ()
    inputs = [x, residual, target, *norms, *weights, *before]
    agree(call, inputs, "triton", device, passed_on=passed_on)


@pytest.mark.usefixtures("small_tiles")
def test_samples_behind_the_end_of_a_block_change_nothing(maker, device):
    """Nor does a gradient that comes to them; and no samples at all have none."""
    make = maker(torch.float32)
    weights, norms, prior = _end(make, 2, 3, 5, True)
    moved = [[t.to(device) for t in part] for part in (weights, norms)]
    given = {n: t.detach().to(device) for n, t in prior.items()}
    x, residual = (make(*s, grad=True).to(device) for s in ((4, 3, 4, 4), (4, 4, 8, 8)))
    target, dz = make(2, 5, 4, 4).to(device), make(7, 5, 4, 4).to(device)

    def step(count, room):
        with backend.using("triton"):
            maps = x[: 2 * count], residual[: 2 * count], target[:count]
            z, dist2, *_ = _ended(*maps, given, *reversed(moved), 2, room=room)
        assert len(z) == 2 * count + room
        incoming = [dz[: len(z)], torch.ones_like(dist2)]
        return [z[: 2 * count], dist2, *torch.autograd.grad([z, dist2], [x, residual], incoming)]

    for roomy, plain in zip(step(2, 3), step(2, 0), strict=True):
        assert torch.equal(roomy, plain)
    z, dist2, *gradients = step(0, 0)
    assert z.shape == (0, 5, 4, 4) and dist2.shape == (2, 0)
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_end_of_a_block_has_the_gradients_of_finite_differences(maker, shortcut):
    make = maker()
    weights, norms, prior = _end(make, 2, 2, 3, shortcut)
    residual = make(4, 4, 4, 4, grad=True) if shortcut else make(4, 3, 2, 2, grad=True)
    target = make(2, 3, 2, 2)

    def call(x, residual, mean, var):
        with backend.using("reference"):
            given = {**prior, "mean": mean, "var": var}
            return _ended(x, residual, target, given, norms, weights, 2)[:2]

    inputs = [make(4, 2, 2, 2, grad=True), residual, prior["mean"], prior["var"]]
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.usefixtures("small_tiles")
def test_what_joins_a_block_s_branches_passes_opcheck(maker, device):
    make = maker(torch.float32)
    maps = [make(4, 3, 4, 4).to(device) for _ in range(3)]
    target, vectors = make(2, 3, 4, 4).to(device), [make.wide(3).to(device) for _ in range(4)]
    moments = [make.wide(2, 3).abs().to(device) for _ in range(4)]
    x, residual, dy = maps
    a = (x, *vectors[:2], *moments[:2], residual, target, 2, False, 1e-5, True)
    operators, ddist2 = torch.ops.fula, moments[0][:, :2].contiguous()
    for beside in ((*vectors[2:], *moments[2:], 1e-3), (None, None, None, None, 0.0)):
        given = (*a, 0, *beside)
        opcheck(operators.lane_norm_joined.default, (*given, "triton"))
        opcheck(operators.lane_norm_joined_backward.default, (*given, dy, ddist2, "triton"))


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
    # dynamo refuses a function that is given one tensor twice
    affines = [K.Affine(make(4).to(device), make(4).to(device), 1e-5) for _ in range(3)]
    side, target = make(4, 4, 1, 1).to(device), make(2, 4, 3, 3).to(device)
    room = len(x)

    def block(x, projected):
        y, *moments, again = K.lane_conv_fork(x, weight, lanes=2, padding=1)
        norm = dict(zip(("gain", "bias", "eps"), affines[0], strict=True))
        norm |= dict(zip(("mean", "var"), moments, strict=True))
        projection = K.Projection(side, 1, 0, affines[2]) if projected else None
        end = {"norm": affines[1], "residual": again, "projection": projection, "room": room}
        z, dist2, _ = K.lane_conv_norm(
            y, weight, lanes=2, padding=1, **norm, **end, relu=True, target=target
        )
        return z[: len(x)], dist2

    torch._dynamo.reset()
    for projected in (True, False):
        found = []
        with backend.using("triton"):
            for run in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
                y, dist2 = run(x, projected)
                total = y.square().sum() + dist2.sum()
                found.append([y, dist2, *torch.autograd.grad(total, x)])
        for eager, compiled in zip(*found, strict=True):
            torch.testing.assert_close(compiled, eager)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["f32", "bf16"])
@pytest.mark.parametrize("geometry", [(3, 1, 1), (3, 2, 1), (1, 2, 0)])
@pytest.mark.parametrize("sizes", [(3, 8, 64, 64, 32, 32), (2, 16, 256, 512, 8, 8)])
def test_lane_conv_with_its_own_tiles(maker, agree, sizes, name, geometry):
    _check(maker, agree, "cuda", sizes, name, "last", *geometry, 1)
