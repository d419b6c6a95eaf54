"""What `lane_norm` is called with, and what it cannot mean."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..shared import checks

NOUN = "lane_norm"


class LaneNormArguments(NamedTuple):
    """The arguments of `lane_norm`, in the order of its operator.

    x, residual: (L*B, C, H, W); weight, bias: (C,) or (L, C); target: (B, C, H, W).
    running_mean, running_var: (L, C); for the gradient, the statistics that the forward pass used.
    room: samples that y has behind those of x, left to the caller.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    residual: Tensor | None
    target: Tensor | None
    lanes: int
    training: bool
    eps: float
    relu: bool
    room: int = 0


class ResidualNorm(NamedTuple):
    """A norm of the residual's own: weight, bias (C,) or (L, C), statistics (L, C); all or none."""

    residual_weight: Tensor | None
    residual_bias: Tensor | None
    residual_mean: Tensor | None
    residual_var: Tensor | None
    residual_eps: float


def checked(a: LaneNormArguments) -> LaneNormArguments:
    """`a`, its target without gradient. Raises `FulaError` for what does not fit together."""
    _kinds(a)
    if a.x.dim() != 4:
        checks.fail(NOUN, "x.shape", tuple(a.x.shape), "must be (L*B, C, H, W)")
    batch, _, height, width = a.x.shape
    if a.lanes < 0 or (batch % a.lanes if a.lanes else batch):
        checks.fail(NOUN, "lanes", a.lanes, f"must divide the batch axis of x, {batch}")
    _vectors(a)
    checks.number(NOUN, "eps", a.eps)
    if a.room < 0:
        checks.fail(NOUN, "room", a.room, "must be at least 0")
    if a.training and a.lanes and not batch * height * width:
        rule = "training needs at least one value a channel"
        checks.fail(NOUN, "x.shape", tuple(a.x.shape), rule)
    _maps(a)
    return a if a.target is None else a._replace(target=a.target.detach())


def _kinds(a: LaneNormArguments) -> None:
    given = {"x": a.x, "weight": a.weight, "bias": a.bias}
    given |= {"running_mean": a.running_mean, "running_var": a.running_var}
    checks.tensors(NOUN, given | checks.present(residual=a.residual, target=a.target))
    checks.integer(NOUN, "lanes", a.lanes)
    checks.integer(NOUN, "room", a.room)
    checks.floating(NOUN, "x", a.x)


def _vectors(a: LaneNormArguments) -> None:
    channels = a.x.shape[1]
    shared, by_lane = (channels,), (a.lanes, channels)
    for name, tensor in (("weight", a.weight), ("bias", a.bias)):
        checks.like(NOUN, name, tensor, "x", a.x, dtype=False)
        checks.shape(NOUN, name, tensor, shared, by_lane, meaning="(C,) or (L, C)")
    checks.shape(NOUN, "bias", a.bias, a.weight.shape, meaning="that of weight")
    for name, tensor in (("running_mean", a.running_mean), ("running_var", a.running_var)):
        checks.like(NOUN, name, tensor, "x", a.x, dtype=False)
        checks.shape(NOUN, name, tensor, by_lane, meaning="(L, C)")


def _maps(a: LaneNormArguments) -> None:
    if a.residual is not None:
        checks.like(NOUN, "residual", a.residual, "x", a.x)
        checks.shape(NOUN, "residual", a.residual, a.x.shape, meaning="that of x")
    if a.target is not None:
        checks.like(NOUN, "target", a.target, "x", a.x)
        samples = a.x.shape[0] // a.lanes if a.lanes else len(a.target)
        checks.shape(NOUN, "target", a.target, (samples, *a.x.shape[1:]), meaning="(B, C, H, W)")
