"""What the registered operators (`torch.ops.fula.*`) share.

An operator takes the fields of its noun's record one after another, then the name of the backend
that was chosen for the call; its schema derives from the record. Each has a fake implementation
and, where it is differentiable, an autograd formula over a second operator for the gradient, so
that `torch.compile(fullgraph=True)` and CUDA graphs take them whole. All are functional: no output
aliases an input, nothing is changed in place. An output that was not asked for is an empty tensor;
the public functions turn it into None. Gradients have no gradients of their own: second derivatives
need the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from .sums import accumulator

_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Sequence[Tensor]: "Tensor[]",
    Sequence[int]: "SymInt[]",
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
}


class Incoming(NamedTuple):
    """Gradients that come in: dy as y, ddist2 (L, B); None for an output that has none."""

    dy: Tensor | None
    ddist2: Tensor | None


def schema(returns: str, *records: type, **more: type) -> str:
    """Of an operator that takes the fields of `records`, then `more`, then the backend."""
    fields: dict[str, Any] = {}
    for record in records:
        fields |= get_type_hints(record)
    fields |= {**more, "backend": str}
    return f"({', '.join(f'{_TYPES[kind]} {name}' for name, kind in fields.items())}) -> {returns}"


def or_empty(value: Tensor | None, x: Tensor) -> Tensor:
    """`value`, or an empty tensor (0,) of sums over `x`."""
    return x.new_empty(0, dtype=accumulator(x.dtype)) if value is None else value


def keep(ctx: Any, arguments: tuple, backend: str) -> None:
    """Keep a record and the backend for the gradient, which runs where the forward pass ran."""
    ctx.save_for_backward(*(v if isinstance(v, Tensor) else None for v in arguments))
    ctx.others = [None if isinstance(v, Tensor) else v for v in arguments]
    ctx.backend = backend
    ctx.set_materialize_grads(False)


def kept(ctx: Any) -> list:
    """The fields of the record that `keep` was given."""
    pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
    return [other if tensor is None else tensor for tensor, other in pairs]


def gradients(record: type[tuple], **known: Tensor | None) -> tuple[Tensor | None, ...]:
    """One entry an argument of an operator: those `known` by name, None for all others."""
    return (*(known.get(name) for name in record._fields), None)
