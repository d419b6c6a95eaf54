"""What `stitch_hint` is called with, and what it cannot mean."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..shared import checks

NOUN = "stitch_hint"


class StitchHintArguments(NamedTuple):
    """The arguments of `stitch_hint`, in the order of its operator.

    x: (S, B, C1, H, W), tokens (S, B, T, C1) or vectors (S, B, C1); weight: (L, C2, C1); bias:
    (L, C2); target: T of them, with C2 features. An index holds one number a lane; that of no
    target is empty.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    x_index: Sequence[int]
    target: Tensor | None
    target_index: Sequence[int]
    write: bool


def checked(a: StitchHintArguments) -> StitchHintArguments:
    """`a`, its indices as lists, its target without gradient.

    Raises `FulaError` for arguments that do not fit together.
    """
    checks.tensors(
        NOUN, {"x": a.x, "weight": a.weight, "bias": a.bias} | checks.present(target=a.target)
    )
    _stitch(a)
    fronts = _lane_index("x_index", a.x_index, len(a.x), len(a.weight))
    if a.target is None:
        if not a.write:
            checks.fail(NOUN, "write", a.write, "must be True where there is no target")
        return a._replace(x_index=fronts, target_index=[])
    _target(a, a.target)
    aims = _lane_index("target_index", a.target_index, len(a.target), len(a.weight))
    return a._replace(x_index=fronts, target=a.target.detach(), target_index=aims)


def _stitch(a: StitchHintArguments) -> None:
    x, weight, bias = a.x, a.weight, a.bias
    checks.floating(NOUN, "x", x)
    if x.dim() not in (3, 4, 5):
        rule = "must be (S, B, C1, H, W), tokens (S, B, T, C1) or vectors (S, B, C1)"
        checks.fail(NOUN, "x.shape", tuple(x.shape), rule)
    features = x.shape[2] if x.dim() == 5 else x.shape[-1]
    checks.like(NOUN, "weight", weight, "x", x, dtype=False)
    if weight.dim() != 3 or weight.shape[2] != features:
        rule = f"must be (L, C2, {features}), the features of x last"
        checks.fail(NOUN, "weight.shape", tuple(weight.shape), rule)
    checks.like(NOUN, "bias", bias, "x", x, dtype=False)
    checks.shape(NOUN, "bias", bias, weight.shape[:2], meaning="(L, C2)")


def _target(a: StitchHintArguments, target: Tensor) -> None:
    checks.like(NOUN, "target", target, "x", a.x)
    places = a.x.shape[3:] if a.x.dim() == 5 else a.x.shape[2:-1]
    outputs = a.weight.shape[1]
    shape = (outputs, *places) if a.x.dim() == 5 else (*places, outputs)
    if target.dim() != a.x.dim() or tuple(target.shape[1:]) != (a.x.shape[1], *shape):
        rule = f"must be (T, {', '.join(str(n) for n in (a.x.shape[1], *shape))})"
        checks.fail(NOUN, "target.shape", tuple(target.shape), rule)


def _lane_index(
    name: str, index: Tensor | Sequence[int] | None, count: int, lanes: int
) -> list[int]:
    """The lane index as a list of host numbers, each in [0, count), one a lane.

    Sequences, and tensors in host memory. A device tensor is refused: reading it would stall the
    device, and cannot be done inside a capture.
    """
    if index is None:
        checks.fail(NOUN, name, None, "must be given with its tensor")
    if isinstance(index, Tensor):
        if index.device.type != "cpu":
            rule = "must be host numbers, or a CPU tensor"
            checks.fail(NOUN, f"{name}.device", index.device, rule)
        checks.tensors(NOUN, {name: index})
        index = index.tolist()
    if not isinstance(index, Iterable):
        rule = "must be a sequence of integers, one a lane"
        checks.fail(NOUN, name, checks.short(index), rule)
    numbers = [_number(f"{name}[{lane}]", number) for lane, number in enumerate(index)]
    if len(numbers) != lanes:
        checks.fail(NOUN, f"len({name})", len(numbers), f"must be the number of lanes, {lanes}")
    for lane, number in enumerate(numbers):
        if not 0 <= number < count:
            checks.fail(NOUN, f"{name}[{lane}]", number, f"must lie in 0 ... {count - 1}")
    return numbers


def _number(name: str, number: object) -> int:
    try:
        return operator.index(number)
    except TypeError:
        checks.fail(NOUN, name, checks.short(number), "must be an integer")
