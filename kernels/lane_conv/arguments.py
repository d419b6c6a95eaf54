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
