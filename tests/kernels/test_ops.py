"""The registered operators: opcheck, no graph break, and every backend of the CPU agrees."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.library import opcheck

import fula_fast.kernels as K
from fula_fast.errors import FulaError
from fula_fast.kernels import backend

pytestmark = [
    # opcheck looks at .grad of the copies that it makes of inputs
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.skipif(
        {noun for noun, served in backend.NOUNS.items() if "cpp" in served} != backend._CORE_NOUNS,
        reason="this build has no fula_fast.kernels._core with every noun",
    ),
]


def _norm_arguments(make, residual, target, training, affine=False):
    return (
        make(6, 4, 3, 2, grad=True), make(4, grad=affine), make(4, grad=affine), make(2, 4),
        make(2, 4).abs(), make(6, 4, 3, 2, grad=True) if residual else None,
        make(3, 4, 3, 2) if target else None, 2, training, 1e-5, True, 0, "cpp",
    )  # fmt: skip


@pytest.mark.parametrize(
    "residual,target,training,layout", [(1, 1, True, "last"), (0, 1, False, "first")]
)
def test_lane_norm_passes_opcheck(maker, residual, target, training, layout):
    arguments = _norm_arguments(maker(layout=layout), residual, target, training, bool(residual))
    opcheck(torch.ops.fula.lane_norm.default, arguments)


@pytest.mark.parametrize("kind", ["maps", "tokens"])
@pytest.mark.parametrize("write,target", [(True, True), (False, True), (True, False)])
def test_stitch_hint_passes_opcheck(maker, kind, write, target):
    make = maker()
    fronts, aims = (
        ((2, 3, 4, 2, 2), (2, 3, 5, 2, 2)) if kind == "maps" else ((2, 3, 4, 4), (2, 3, 4, 5))
    )
    x, weight, bias = make(*fronts, grad=write), make(3, 5, 4, grad=True), make(3, 5, grad=True)
    aimed = (make(*aims), [0, 1, 0]) if target else (None, [])
    opcheck(torch.ops.fula.stitch_hint.default, (x, weight, bias, [0, 1, 1], *aimed, write, "cpp"))


def test_the_others_pass_opcheck(maker):
    make = maker(torch.float32)
    activations, targets = (
        [make(6, 4, 3, 2, grad=True), make(9, 7, grad=True)],
        [make(3, 4, 3, 2), make(3, 7)],
    )
    opcheck(torch.ops.fula.hint_terms.default, (activations, targets, "cpp"))
    image = make(4, 3, 2, 2).abs().clamp(0, 1)
    opcheck(
        torch.ops.fula.pgd_step.default, (image, make(4, 3, 2, 2), image, 0.1, 0.2, "l2", "cpp")
    )
    images = torch.randint(0, 256, (9, 4, 4, 3), dtype=torch.uint8)
    draws = torch.arange(9, dtype=torch.int32) % 3
    opcheck(
        torch.ops.fula.augment.default,
        (
            images,
            torch.tensor([4, 8]),
            draws,
            draws,
            draws > 1,
            1,
            None,
            None,
            None,
            None,
            torch.float32,
            "cpp",
        ),
    )


@pytest.mark.parametrize(
    "options", list(product(*[(0, 1)] * 4)), ids=lambda o: "".join(map(str, o))
)
def test_lane_norm_agrees_with_the_reference(maker, agree, options):
    residual, target, training, relu = options

    def call(x, weight, bias, mean, var, residual, target):
        return K.lane_norm(
            x, weight, bias, mean, var, lanes=2, training=bool(training), eps=1e-5,
            residual=residual, relu=bool(relu), target=target,
        )  # fmt: skip

    for name, layout in (("float64", "last"), ("float32", "gaps"), ("bfloat16", "first")):
        make = maker(getattr(torch, name), layout)
        arguments = _norm_arguments(make, residual, target, bool(training), affine=True)[:7]
        agree(call, arguments, "cpp", atol=1e-12 if name == "float64" else 2e-6)


@pytest.mark.parametrize("kind", ["maps", "tokens", "vectors"])
@pytest.mark.parametrize("write,target", [(True, True), (False, True), (True, False)])
def test_stitch_hint_agrees_with_the_reference(maker, agree, kind, write, target):
    fronts = {"maps": (2, 3, 7, 3, 2), "tokens": (2, 3, 4, 7), "vectors": (2, 3, 7)}[kind]
    aims = {"maps": (2, 3, 5, 3, 2), "tokens": (2, 3, 4, 5), "vectors": (2, 3, 5)}[kind]

    def call(x, weight, bias, aimed):
        index = [1, 0, 1] if target else None
        return K.stitch_hint(x, weight, bias, [0, 1, 1], aimed, index, write)

    for name, layout in (("float64", "last"), ("float32", "gaps"), ("float32", "first")):
        make = maker(getattr(torch, name), layout)
        inputs = [
            make(*fronts, grad=True), make.wide(3, 5, 7, grad=True), make.wide(3, 5, grad=True),
            make(*aims) if target else None,
        ]  # fmt: skip
        agree(call, inputs, "cpp", atol=1e-12 if name == "float64" else 2e-6)


def test_hint_terms_agree_with_the_reference(maker, agree):
    for name in ("float64", "float32", "bfloat16"):
        make = maker(getattr(torch, name))
        inputs = [make(6, 4, 3, 2, grad=True), make(9, 7, grad=True), make(3, 4, 3, 2), make(3, 7)]
        agree(lambda a, b, s, t: K.hint_terms([a, b], [s, t]), inputs, "cpp", atol=2e-6)


def _step(make):
    """Stitch, tail norm and terms as one wave step has them."""
    weight, bias, target = make(2, 4, 4), make(2, 4), make(1, 3, 4, 3, 2)
    stats = make(4), make(4), make(2, 4), make(2, 4).abs()

    def step(x):
        y, first = K.stitch_hint(x, weight, bias, [0, 0], target, [0, 0])
        z, *_, last = K.lane_norm(
            y, *stats, lanes=2, training=True, eps=1e-5, residual=y, relu=True, target=target[0]
        )
        (more,) = K.hint_terms([z], [target[0]])
        return K.term(first + last + more, K.squared_norm(target[0]))

    return step


@pytest.mark.parametrize("choice", ["reference", "cpp"])
def test_a_step_compiles_without_a_graph_break(maker, choice):
    step, x = _step(maker()), maker()(1, 3, 4, 3, 2, grad=True)
    with backend.using("reference"):
        want = step(x)
        (want_grad,) = torch.autograd.grad(want.sum(), x)
    torch._dynamo.reset()
    with backend.using(choice):
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
        (grad,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grad, want_grad)


def test_operators_of_pixels_compile_without_a_graph_break(maker):
    """Twice, so that numbers that differ between the calls are traced as symbols."""
    make = maker(torch.float32)
    x, grad = make(4, 3, 5, 5).abs().clamp(0, 1), make(4, 3, 5, 5)
    images = torch.randint(0, 256, (9, 4, 4, 3), dtype=torch.uint8)
    draws, index = torch.arange(9) % 3, torch.tensor([4, 8])

    def step(size, pad):
        moved = K.pgd_step(x, grad, x, size, 2 * size, "l2")
        return moved, K.augment(images, index, draws, draws, draws > 1, pad)

    torch._dynamo.reset()
    run = torch.compile(step, fullgraph=True, backend="aot_eager")
    for arguments in ((0.1, 1), (0.2, 2)):
        for got, want in zip(run(*arguments), step(*arguments), strict=True):
            torch.testing.assert_close(got, want)


def test_incoming_gradients_are_left_alone(maker):
    make = maker()
    arguments = _norm_arguments(make, 1, 1, True)
    y, _, _, dist2 = torch.ops.fula.lane_norm(*arguments)
    dy, ddist2 = torch.randn_like(y), torch.randn_like(dist2)
    kept = dy.clone(), ddist2.clone()
    grads = torch.autograd.grad([y, dist2], [arguments[0], arguments[5]], [dy, ddist2])
    assert torch.equal(dy, kept[0]) and torch.equal(ddist2, kept[1])
    assert all(g.data_ptr() != dy.data_ptr() for g in grads)


@pytest.mark.parametrize("name", ["reference", "cpp"])
@pytest.mark.parametrize("layout", ["last", "first"])
def test_lane_norm_leaves_room_behind_its_output(maker, room_is_left, name, layout):
    room_is_left(maker(torch.float32, layout), name)


def test_lane_norm_leaves_no_negative_room(maker):
    make = maker()
    with pytest.raises(FulaError, match="room = -1"):
        K.lane_norm(
            make(6, 4, 3, 2), make(4), make(4), make(2, 4), make(2, 4),
            lanes=2, training=True, eps=1e-5, room=-1,
        )  # fmt: skip
