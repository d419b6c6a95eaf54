"""`torch.compile` for fixed shapes, with a cache that belongs to what was compiled.

Dynamo keeps its graphs by code object, and every module of a class, of every wave, has the same
one: a process that goes on would fill it until dynamo gives up. Here each compiled function has a
code object of its own, and its graphs go when it goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

MOST_SHAPES = 64
"""Specialisations of one function: a stage has one for each number of lanes and rule."""


def compiled(fn: F) -> F:
    """`fn` through torch.compile, one specialisation per set of shapes, without CUDA graphs of its
    own.

    Dynamo gives up on a function after eight shapes and goes on in eager mode with only a log line:
    the limit is raised, and reaching it is an error.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, MOST_SHAPES)
    config.fail_on_recompile_limit_hit = True
    own = _with_own_code(fn)
    made = torch.compile(own, dynamic=False)
    weakref.finalize(made, torch._dynamo.eval_frame.reset_code, own.__code__)
    return made


def _with_own_code(fn: F) -> F:
    def call(*args, **kwargs):
        return fn(*args, **kwargs)

    return FunctionType(call.__code__.replace(), globals(), call.__name__, None, call.__closure__)
