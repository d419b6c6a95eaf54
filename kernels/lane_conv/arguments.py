"""What `lane_conv` is called with, and what it cannot mean."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..shared import checks

NOUN = "lane_conv"


class LaneConvArguments(NamedTuple):
    """The arguments of `lane_conv`, in the order of its operator.

    x: (L*B, C1, H, W); weight: (C2, C1, K, K); gain, bias: (C1,); mean, var: (L, C1).
    """

    x: Tensor
    weight: Tensor
    gain: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    lanes: int
    stride: int
    padding: int
    eps: float

    @property
    def output(self) -> tuple[int, int, int, int]:
        """The shape of y, (L*B, C2, H', W')."""
        reach = 2 * self.padding - self.weight.shape[2]
        height, width = ((n + reach) // self.stride + 1 for n in self.x.shape[2:])
        return self.x.shape[0], self.weight.shape[0], height, width


class Affine(NamedTuple):
    """A norm's gain and bias (C2,), without gradient, and its eps."""

    gain: Tensor
    bias: Tensor
    eps: float


class Projection(NamedTuple):
    """A residual's own convolution (C2, C1', K', K') and its norm."""

    weight: Tensor
    stride: int
    padding: int
    norm: Affine


class Closed(NamedTuple):
    """The norm behind a block's last convolution, and the sum that it ends in.

    residual_gain, residual_bias, residual_eps: of the projection's norm, whose convolution gives
    the residual (None then).
    """

    gain: Tensor
    bias: Tensor
    eps: float
    residual: Tensor | None
    residual_gain: Tensor | None
    residual_bias: Tensor | None
    residual_eps: float
    target: Tensor | None
    relu: bool
    room: int


class ConvGradients(NamedTuple):
    """Gradients that come in: dy (L*B, C2, H', W'); those of y's statistics (L, C2), with y and its
    mean, all four or none; of another branch that x feeds, (L*B, C1, H, W). scale (L, C2): what dy
    is multiplied by while it is read, only beside the statistics' gradients."""

    dy: Tensor
    dmean: Tensor | None
    dvar: Tensor | None
    y: Tensor | None
    centre: Tensor | None
    beside: Tensor | None
    scale: Tensor | None


def checked(a: LaneConvArguments) -> LaneConvArguments:
    """`a`, if it fits together. Raises `FulaError` for what does not."""
    _kinds(a)
    if a.x.dim() != 4:
        checks.fail(NOUN, "x.shape", tuple(a.x.shape), "must be (L*B, C1, H, W)")
    channels, kernel = a.x.shape[1], a.weight.shape[-1] if a.weight.dim() else 1
    checks.like(NOUN, "weight", a.weight, "x", a.x)
    shape = (a.weight.shape[0] if a.weight.dim() else 0, channels, kernel, kernel)
    checks.shape(NOUN, "weight", a.weight, shape, meaning="(C2, C1, K, K)")
    if a.lanes < 0 or (len(a.x) % a.lanes if a.lanes else len(a.x)):
        checks.fail(NOUN, "lanes", a.lanes, f"must divide the batch axis of x, {len(a.x)}")
    _geometry(a)
    _norm(a)
    return a


def _kinds(a: LaneConvArguments) -> None:
    checks.tensors(NOUN, {"x": a.x, "weight": a.weight} | _given(a))
    for name in ("lanes", "stride", "padding"):
        checks.integer(NOUN, name, getattr(a, name))
    checks.number(NOUN, "eps", a.eps)
    checks.floating(NOUN, "x", a.x)
    for name, tensor in (("weight", a.weight), ("gain", a.gain), ("bias", a.bias)):
        if tensor is not None and tensor.requires_grad:
            checks.fail(NOUN, f"{name}.requires_grad", True, "it has no gradient: detach it")


def _given(a: LaneConvArguments) -> dict[str, Tensor]:
    """What there is of the norm before."""
    parts = {"gain": a.gain, "bias": a.bias, "mean": a.mean, "var": a.var}
    return {name: tensor for name, tensor in parts.items() if tensor is not None}


def _geometry(a: LaneConvArguments) -> None:
    if a.stride < 1:
        checks.fail(NOUN, "stride", a.stride, "must be at least 1")
    if a.padding < 0:
        checks.fail(NOUN, "padding", a.padding, "must be at least 0")
    if min(a.output[2:]) < 1:
        rule = f"must hold the kernel of {a.weight.shape[2]} with padding {a.padding}"
        checks.fail(NOUN, "x.shape", tuple(a.x.shape), rule)


def _norm(a: LaneConvArguments) -> None:
    given = _given(a)
    missing = {"gain", "bias", "mean", "var"} - given.keys()
    if given and missing:
        checks.fail(NOUN, min(missing), None, "gain, bias, mean and var: all of them, or none")
    channels = a.x.shape[1]
    shapes = {"gain": (channels,), "bias": (channels,)}
    for name, tensor in given.items():
        checks.like(NOUN, name, tensor, "x", a.x, dtype=False)
        meaning = "(C1,)" if name in shapes else "(L, C1)"
        checks.shape(NOUN, name, tensor, shapes.get(name, (a.lanes, channels)), meaning=meaning)


def checked_end(
    last: LaneConvArguments, projection: Projection | None, residual: Tensor | None, end: Closed
) -> tuple[LaneConvArguments | None, Closed]:
    """The projection's convolution, and `end` of checked `last` with its target (B, C2, H', W')
    without gradient; residual: (L*B, C2, H', W'), or what the projection takes.

    Raises `FulaError` for what does not fit together.
    """
    _affine(last, "norm", Affine(end.gain, end.bias, end.eps))
    checks.tensors(NOUN, checks.present(residual=residual, target=end.target))
    for name, tensor in (("residual", residual), ("target", end.target)):
        if tensor is not None:
            checks.like(NOUN, name, tensor, "x", last.x)
    checks.integer(NOUN, "room", end.room)
    if end.room < 0:
        checks.fail(NOUN, "room", end.room, "must be at least 0")
    if end.target is not None:
        samples = len(last.x) // last.lanes if last.lanes else len(end.target)
        meaning = "(B, C2, H', W')"
        checks.shape(NOUN, "target", end.target, (samples, *last.output[1:]), meaning=meaning)
        end = end._replace(target=end.target.detach())
    if projection is None:
        if residual is not None:
            meaning = "that of y"
            checks.shape(NOUN, "residual", residual, last.output, meaning=meaning)
        return None, end._replace(residual=residual)
    if residual is None:
        checks.fail(NOUN, "residual", None, "must be what the projection takes")
    geometry = last.lanes, projection.stride, projection.padding, 0.0
    before = None, None, None, None
    conv = checked(LaneConvArguments(residual, projection.weight, *before, *geometry))
    if conv.output != last.output:
        rule = f"must be that of y, {last.output}"
        checks.fail(NOUN, "projection's output", conv.output, rule)
    _affine(conv, "projection.norm", projection.norm)
    gain, bias, eps = projection.norm
    return conv, end._replace(residual_gain=gain, residual_bias=bias, residual_eps=eps)


def _affine(a: LaneConvArguments, name: str, norm: Affine) -> None:
    """A norm of what `a` gives."""
    given = {f"{name}.gain": norm.gain, f"{name}.bias": norm.bias}
    checks.tensors(NOUN, given)
    for part, tensor in given.items():
        checks.like(NOUN, part, tensor, "x", a.x, dtype=False)
        checks.shape(NOUN, part, tensor, (a.weight.shape[0],), meaning="(C2,)")
        if tensor.requires_grad:
            checks.fail(NOUN, f"{part}.requires_grad", True, "it has no gradient: detach it")
    checks.number(NOUN, f"{name}.eps", norm.eps)
