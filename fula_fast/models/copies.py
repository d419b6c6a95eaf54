"""Private copies of a user's modules, whatever has been hung on them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import FulaError

M = TypeVar("M", bound=nn.Module)


_WRAPPER_PARTS = ("_orig_mod", "module")


def unwrapped(module: Any) -> Any:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`, in any
    order; anything that is no module is as it was."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(module, nn.Module):
        if isinstance(module, parallel):
            module = module.module
        elif (inner := module._modules.get("_orig_mod")) is not None:
            module = inner
        else:
            break
    return module


def unwrapped_name(name: str) -> str:
    """A submodule's name without the wrappers in front of it."""
    parts = name.split(".")
    while parts[0] in _WRAPPER_PARTS and len(parts) > 1:
        parts = parts[1:]
    return ".".join(parts)


def private_copy(module: M) -> M:
    """A deep copy of a module.

    An activation that a hook or a forward pass left on it belongs to a graph, which cannot be
    copied: its values are, without the graph. Raises `FulaError` that names the attribute where
    something else (an open file, a lock, a generator) refuses to be copied.
    """
    memo: dict[int, Any] = {
        id(tensor): tensor.detach().clone()
        for child in module.modules()
        for tensor in _tensors(vars(child))
        if not tensor.is_leaf
    }
    try:
        return copy.deepcopy(module, dict(memo))
    except Exception as error:  # a copy runs the objects' own code, which may raise anything
        raise FulaError(_refusal(module, memo, error)) from error


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value's dictionaries, lists and tuples; those of submodules are theirs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _refusal(module: nn.Module, memo: Mapping[int, Any], error: Exception) -> str:
    reason = str(error).split("\n")[0][:120]
    for name, child in module.named_modules():
        for attribute, value in vars(child).items():
            if attribute == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as cause:  # as above; the first that refuses is the one to name
                reason = str(cause).split("\n")[0][:120]
                where = ".".join([name, attribute] if name else [attribute])
                return (
                    f"{type(module).__name__} cannot be copied: its attribute '{where}' is a "
                    f"{type(value).__name__} that refuses ({reason}); delete it before"
                )
    return f"{type(module).__name__} cannot be copied ({reason}); give a module that deepcopy takes"
