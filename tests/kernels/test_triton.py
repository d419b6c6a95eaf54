"""Every Triton kernel against the float64 reference: in the interpreter, and on a device.

The interpreter cannot share a process with ahead-of-time compilation, so those runs have a process
of their own, which `test_interpreter.py` starts; here they skip.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch

import fula_fast.kernels as K
from fula_fast.errors import FulaError
from fula_fast.kernels import backend

pytest.importorskip("triton")
from fula_fast.kernels.shared import tiles
from fula_fast.kernels.shared.tiles import Tile
from fula_fast.kernels.stitch_hint import triton as stitch_launch

# the interpreter of older releases turns one-element arrays into numbers
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")

SMALL = {
    "stats": Tile(16, 8, 2),
    "normalise": Tile(16, 8),
    "sums": Tile(8, 16, 2),
    "norm_gradient": Tile(16, 8),
    "stitch": Tile(16, 16, 16),
    "fused_gradient": Tile(16, 16, 32),
    "weight_gradient": Tile(16, 16, 16),
    "input_gradient": Tile(16, 16, 16),
}
"""Tiles so small that tiny tensors need several, edges included."""


@pytest.fixture(autouse=True)
def small_tiles():
    with tiles.forced(**SMALL):
        yield


def _dtype(name: str) -> torch.dtype:
    return {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[name]


# (lanes, samples, channels, height, width), dtype, layout, residual, relu, target, training, affine
NORMS = [
    ((2, 3, 5, 3, 4), "f32", "first", 1, 1, 1, 1, 1),
    ((2, 3, 5, 3, 4), "f32", "gaps", 1, 0, 1, 0, 0),
    ((1, 5, 17, 1, 1), "bf16", "last", 0, 1, 1, 1, 0),
    ((2, 2, 20, 5, 2), "bf16", "last", 0, 1, 0, 1, 0),
    ((3, 1, 20, 5, 2), "f16", "first", 0, 0, 1, 1, 1),
    ((2, 2, 6, 4, 4), "bf16", "last", 1, 1, 1, 1, 0),
    ((1, 2, 9, 4, 3), "f32", "last", 1, 1, 0, 0, 1),
]


def _check_norm(maker, agree, device, sizes, name, layout, residual, relu, target, train, affine):
    lanes, samples, channels, *places = sizes
    make = maker(_dtype(name), layout)
    inputs = [
        make(lanes * samples, channels, *places, grad=True, shift=3.0),
        make.wide(channels, grad=bool(affine)),
        make.wide(channels, grad=bool(affine)),
        make.wide(lanes, channels),
        make.wide(lanes, channels).abs() + 0.5,
        make(lanes * samples, channels, *places, grad=True) if residual else None,
        make(samples, channels, *places) if target else None,
    ]

    def call(x, weight, bias, mean, var, residual, target):
        return K.lane_norm(
            x, weight, bias, mean, var, lanes=lanes, training=bool(train), eps=1e-5,
            residual=residual, relu=bool(relu), target=target,
        )  # fmt: skip

    # dresidual is stored and read back for dx, as it is between PyTorch's own layers
    dx = (4 if target else 3,) if residual else ()
    agree(call, inputs, "triton", device, passed_on=dx)


@pytest.mark.parametrize("case", NORMS, ids=lambda c: "-".join(map(str, c[1:])))
def test_lane_norm(maker, agree, device, case):
    _check_norm(maker, agree, device, *case)


def _sampled(cases):
    """All of them slow; six of seven, which is odd, so that every option is seen both ways, only by
    hand."""
    marks = [[pytest.mark.slow] + [pytest.mark.long] * bool(n % 7) for n in range(len(cases))]
    return [pytest.param(*case, marks=m) for case, m in zip(cases, marks, strict=True)]


@pytest.mark.parametrize(
    "name,options", _sampled(list(product(["f32", "bf16", "f16"], product(*[(0, 1)] * 5))))
)
def test_lane_norm_with_every_option(maker, agree, device, name, options):
    _check_norm(maker, agree, device, (2, 3, 10, 3, 5), name, "last", *options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["f32", "bf16"])
@pytest.mark.parametrize("sizes", [(3, 8, 64, 32, 32), (2, 16, 512, 4, 4), (2, 5, 96, 7, 7)])
def test_lane_norm_with_its_own_tiles(maker, agree, sizes, name):
    tiles._forced.clear()
    _check_norm(maker, agree, "cuda", sizes, name, "last", 1, 1, 1, 1, 1)


@pytest.mark.parametrize("layout", ["last", "first"])
def test_lane_norm_leaves_room_behind_its_output(maker, room_is_left, device, layout):
    room_is_left(maker(torch.float32, layout), "triton", device)


# (fronts, lanes, samples, targets, height, width, c1, c2), kind, dtype, layout, write, target, dx
STITCHES = [
    ((2, 3, 3, 2, 3, 3, 20, 35), "maps", "f32", "last", 1, 1, 1),
    ((2, 3, 2, 2, 3, 3, 17, 18), "tokens", "f32", "first", 1, 1, 0),
    ((2, 3, 5, 1, 1, 1, 20, 5), "vectors", "bf16", "first", 1, 1, 1),
    ((1, 3, 2, 1, 5, 3, 20, 35), "maps", "bf16", "first", 1, 1, 0),
    ((2, 2, 3, 2, 3, 1, 17, 5), "maps", "f16", "last", 0, 1, 0),
    ((2, 2, 3, 2, 3, 1, 17, 5), "maps", "f16", "last", 1, 1, 1),
    ((1, 3, 2, 2, 4, 4, 16, 16), "maps", "bf16", "last", 1, 0, 1),
    ((1, 2, 2, 1, 4, 3, 16, 16), "maps", "f32", "gaps", 0, 1, 0),
]


def _check_stitch(maker, agree, device, sizes, kind, name, layout, write, target, dx):
    fronts, lanes, samples, targets, height, width, c1, c2 = sizes
    make = maker(_dtype(name), layout)

    def shaped(count: int, channels: int) -> tuple[int, ...]:
        places = {"maps": (channels, height, width), "tokens": (height * width, channels)}
        return (count, samples, *places.get(kind, (channels,)))

    weight = (maker().wide(lanes, c2, c1) / c1**0.5).to(_dtype(name)).float().requires_grad_()
    inputs = [
        make(*shaped(fronts, c1), grad=bool(dx)),
        weight,
        make.wide(lanes, c2, grad=True),
        make(*shaped(targets, c2)) if target else None,
    ]
    x_index = [lane * 2 % 3 % fronts for lane in range(lanes)]
    target_index = [lane // 2 % targets for lane in range(lanes)] if target else None

    def call(x, weight, bias, target):
        return K.stitch_hint(x, weight, bias, x_index, target, target_index, bool(write))

    agree(call, inputs, "triton", device)


@pytest.mark.parametrize("case", STITCHES, ids=lambda c: "-".join(map(str, c[1:])))
def test_stitch_hint(maker, agree, device, case):
    _check_stitch(maker, agree, device, *case)


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_stitch_hint_with_e_written_in_groups(maker, agree, device, monkeypatch, name):
    """As beyond FUSED input channels, with so little workspace that one lane goes at a time."""
    monkeypatch.setattr(stitch_launch, "FUSED", dict.fromkeys(stitch_launch.FUSED, 0))
    monkeypatch.setattr(stitch_launch, "WORKSPACE", 1)
    case = ((2, 3, 4, 2, 3, 3, 20, 17), "maps", name, "last", 1, 1, 0)
    _check_stitch(maker, agree, device, *case)


WRITTEN = [(1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize(
    "kind,name,written,dx",
    _sampled(list(product(["maps", "tokens", "vectors"], ["f32", "bf16", "f16"], WRITTEN, (0, 1)))),
)
def test_stitch_hint_with_every_option(maker, agree, device, kind, name, written, dx):
    sizes = (2, 3, 3, 2, 3, 5, 33, 18)
    _check_stitch(maker, agree, device, sizes, kind, name, "last", *written, dx)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    "sizes",
    [(2, 5, 8, 2, 32, 32, 64, 64), (2, 3, 16, 2, 4, 4, 512, 512), (1, 2, 3, 1, 7, 7, 96, 40)],
)
@pytest.mark.parametrize("dx", [0, 1])
def test_stitch_hint_with_its_own_tiles(maker, agree, sizes, name, dx):
    tiles._forced.clear()
    _check_stitch(maker, agree, "cuda", sizes, "maps", name, "last", 1, 1, dx)


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_hint_terms(maker, agree, device, name):
    make, first = maker(_dtype(name)), maker(_dtype(name), "first")
    activations = [
        make(6, 5, 3, 4, grad=True),
        first(3, 7, 9, grad=True),
        first(12, 4, 3, 3, grad=True),
        make(0, 4, grad=True),
    ]
    targets = [first(3, 5, 3, 4), first(3, 7, 9), make(3, 4, 3, 3), make(3, 4)]
    agree(lambda *t: K.hint_terms(t[:4], t[4:]), [*activations, *targets], "triton", device)


def test_a_zero_distance_has_zero_gradient(maker, device):
    target = maker(torch.float32)(3, 4, 2, 2).to(device)
    h = target.repeat(2, 1, 1, 1).requires_grad_()
    with backend.using("triton"):
        (dist2,) = K.hint_terms([h], [target])
        value = K.term(dist2, K.squared_norm(target))
    (grad,) = torch.autograd.grad(value.sum(), h)
    assert not value.any() and not grad.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_pgd_step(maker, agree, device, name, norm):
    make = maker(_dtype(name))
    clean = make(4, 3, 5, 5).abs().clamp(0, 1)
    x = (clean + 0.02 * make(4, 3, 5, 5)).contiguous()
    grad = make(4, 3, 5, 5)
    grad[1] = 0
    agree(lambda *t: [K.pgd_step(*t, 0.05, 0.3, norm)], [x, grad, clean], "triton", device)


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("markers", [False, True])
def test_augment_gives_the_same_bits(device, name, markers):
    generator = torch.Generator().manual_seed(0)

    def numbers(bound: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.randint(0, bound, (20,), generator=generator, dtype=dtype)

    images = torch.randint(0, 256, (20, 9, 7, 3), generator=generator, dtype=torch.uint8)
    arguments = [images, torch.tensor([3, 19, 0, 3]), numbers(5), numbers(5), numbers(2) > 0, 2]
    if markers:
        patterns = torch.rand(4, 4, 4, 3, generator=generator)
        arguments += [patterns, numbers(4, torch.int64), numbers(6), numbers(4)]
    with backend.using("reference"):
        want = K.augment(*arguments, dtype=_dtype(name))
    moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    with backend.using("triton"):
        got = K.augment(*moved, dtype=_dtype(name))
    assert torch.equal(got.cpu(), want) and got.stride() == want.stride()


def test_augment_takes_draws_with_gaps(device):
    """As columns of one table have them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 6, 5, 3), generator=generator, dtype=torch.uint8)
    table = torch.randint(0, 5, (20, 4), generator=generator)
    columns = (table[:, 0], table[:, 1], (table > 2)[:, 2], 2)
    arguments = [images, torch.arange(20)[::3], *columns]
    with backend.using("reference"):
        want = K.augment(*arguments)
    moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    with backend.using("triton"):
        got = K.augment(*moved)
    assert torch.equal(got.cpu(), want)


def test_two_runs_have_the_same_bits(maker, device):
    if device.type == "cpu":
        pytest.skip("the interpreter runs one program after another")
    make = maker(torch.bfloat16)
    x, target = make(1, 3, 9, 3, 5).to(device), make(1, 3, 17, 3, 5).to(device)
    weight, bias = make.wide(2, 17, 9), make.wide(2, 17)
    stats = [t.to(device) for t in (make.wide(17), make.wide(17), make.wide(2, 17))]

    def run():
        w, b = (t.to(device).clone().requires_grad_() for t in (weight, bias))
        y, dist2 = K.stitch_hint(x, w, b, [0, 0], target, [0, 0])
        z, mean, var, more = K.lane_norm(
            y, stats[0], stats[1], stats[2], stats[2],
            lanes=2, training=True, eps=1e-5, relu=True, target=target[0],
        )  # fmt: skip
        (dist2.sum() + more.sum() + z.float().sum()).backward()
        return z, mean, var, dist2, more, w.grad, b.grad

    with backend.using("triton"):
        for first, second in zip(run(), run(), strict=True):
            assert torch.equal(first, second)


def test_a_nan_stays_in_its_lane_and_shows_there(maker, device):
    make = maker(torch.float32)
    x = make(6, 4, 3, 2)
    x[3, 1, 0, 0] = torch.nan  # lane 1 of 3
    x = x.to(device).requires_grad_()
    ones, zeros = (f(3, 4, device=device) for f in (torch.ones, torch.zeros))
    with backend.using("triton"):
        y, mean, var, _ = K.lane_norm(
            x, ones[0], zeros[0], zeros, ones, lanes=3, training=True, eps=1e-5, relu=True
        )
    (dx,) = torch.autograd.grad(y.sum(), x)
    for value in (y, dx):
        bad = value.view(3, 2, 4, 6).isnan()
        assert bad[1, :, 1].all() and bad.sum() == bad[1, :, 1].numel()
    assert mean.isnan().nonzero().tolist() == var.isnan().nonzero().tolist() == [[1, 1]]


def test_empty_lanes(maker, device):
    make = maker(torch.float32)
    none = make(0, 4, 3, 2).to(device).requires_grad_()
    small = [make(4).to(device), make(4).to(device), *(make(0, 4).to(device) for _ in range(2))]
    with backend.using("triton"):
        y, mean, _, dist2 = K.lane_norm(
            none, *small, lanes=0, training=True, eps=1e-5, target=make(5, 4, 3, 2).to(device)
        )
        assert y.shape == none.shape and mean.shape == (0, 4) and dist2.shape == (0, 5)
        (dx,) = torch.autograd.grad(y.sum() + dist2.sum(), none)
        assert dx.shape == none.shape
        x, weight = make(1, 5, 4, 3, 2).to(device).requires_grad_(), make(0, 6, 4).to(device)
        y, _ = K.stitch_hint(x, weight.requires_grad_(), make(0, 6).to(device), [])
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert y.shape == (0, 6, 3, 2) and not dx.any()


def test_offsets_cross_two_to_the_31(device, tmp_path):
    """Samples more than 2**31 elements apart, in a sparse file: nothing of that size is written."""
    if device.type == "cuda":
        pytest.skip("a device has real tensors of this size, below")
    apart = 2**31 + 16
    path = str(tmp_path / "sparse")
    flat = torch.from_file(path, shared=True, size=apart + 64, dtype=torch.float16)
    for strides in ((apart, 4, 2, 1), (apart, 1, 6, 3)):
        x = flat.as_strided((2, 3, 2, 1), strides)
        dense = torch.randn(2, 3, 2, 1, generator=torch.Generator().manual_seed(0)).half()
        x.copy_(dense)
        with backend.using("triton"):
            one = torch.ones(1, 3)
            y, *_ = K.lane_norm(x, one[0], one[0], one, one, lanes=1, training=True, eps=1e-5)
            z, _ = K.stitch_hint(x[None].expand(1, -1, -1, -1, -1), one[None], one[:, :1], [0])
        with backend.using("reference"):
            want, *_ = K.lane_norm(
                dense, one[0], one[0], one, one, lanes=1, training=True, eps=1e-5
            )
            stitched, _ = K.stitch_hint(dense[None], one[None], one[:, :1], [0])
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(z, stitched)


@pytest.mark.gpu
def test_tensors_of_more_than_two_to_the_31_elements():
    tiles._forced.clear()
    lanes, samples = 33, 1024  # 33 * 1024 * 64 * 32 * 32 > 2**31
    maps = torch.randn(lanes * samples, 64, 32, 32, device="cuda", dtype=torch.bfloat16)
    x = maps.contiguous(memory_format=torch.channels_last)
    del maps
    one, zero = torch.ones(lanes, 64, device="cuda"), torch.zeros(lanes, 64, device="cuda")
    y, mean, var, _ = K.lane_norm(
        x, one[0], zero[0], zero, one, lanes=lanes, training=True, eps=0.0
    )
    last = x[-samples:].float()
    torch.testing.assert_close(mean[-1], last.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    want = (last - mean[-1, :, None, None]) / var[-1, :, None, None].sqrt()
    torch.testing.assert_close(y[-samples:].float(), want, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
def test_a_capture_replays_and_refuses_an_index_it_has_not_seen():
    x = torch.randn(1, 4, 16, 4, 4, device="cuda")
    weight, bias = torch.randn(3, 16, 16, device="cuda"), torch.zeros(3, 16, device="cuda")
    tiles._forced.clear()
    for _ in range(2):
        K.stitch_hint(x, weight, bias, [0, 0, 0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        y, _ = K.stitch_hint(x, weight, bias, [0, 0, 0])
        with pytest.raises(FulaError, match="run the step once before capturing"):
            K.stitch_hint(x.expand(2, -1, -1, -1, -1), weight, bias, [1, 0, 1])
    x.copy_(torch.randn_like(x))
    graph.replay()
    with backend.using("reference"):
        want, _ = K.stitch_hint(x, weight, bias, [0, 0, 0])
    torch.testing.assert_close(y, want, atol=1e-4, rtol=1e-4)
