"""What a method is: one frozen record each, from which everything that depends on methods derives.

Needs no torch. The records that ship stand in files of their names; `register(Method(…))` adds one
from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import FulaError, nearest
from .weightings import Weighting


@dataclass(frozen=True)
class Mark:
    """How a method is drawn: colour, marker and dash pattern."""

    colour: str
    marker: str
    dashes: tuple[float, tuple[float, ...]] | str


@dataclass(frozen=True)
class Method:
    """A way to find a stitch. With neither `terms` nor `loss` it is the closed form, untrained.

    `name`: in specs and tables; `label`, `mark`: in plots (no mark: a spare one). `stitch`,
    `reads`, `careful`: what the stitch is, what the result says, and when not to trust it.

    `terms(weighting, count)`: weights of the `count` normalised terms from the stitch's site to the
    last one (0 where a term is not needed); `weighted`: they depend on the protocol's weighting.
    `loss`: a function, or "module:function" imported on first use, of (logits (L, B, classes), the
    end's own (B, classes) or (L, B, classes), labels (B,)) to (L,), one number for each lane, whose
    samples do not couple lanes. `end_logits`, `labels`: what it needs of these; None is given for
    what it does not need.
    """

    name: str
    label: str
    stitch: str
    reads: str
    careful: str
    mark: Mark | None = None
    terms: Callable[[Weighting, int], tuple[float, ...]] | None = None
    weighted: bool = False
    loss: str | Callable[..., Any] | None = None
    end_logits: bool = False
    labels: bool = False

    @property
    def trained(self) -> bool:
        """Whether there is something to minimise."""
        return self.terms is not None or self.loss is not None

    @property
    def needs_tail(self) -> bool:
        """Whether it reaches behind the stitch's own site."""
        return self.loss is not None or (self.terms is not None and any(self.terms("last", 9)[1:]))

    @property
    def needs_classifier(self) -> bool:
        """Whether the end's answers are among what it needs."""
        return self.end_logits or self.labels

    def load(self) -> Callable[..., Any] | None:
        """Its loss as a function; None where it has none."""
        if not isinstance(self.loss, str):
            return self.loss
        module, _, name = self.loss.partition(":")
        return getattr(import_module(module), name)


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method under its name. Raises `FulaError` where another has it."""
    if _METHODS.get(method.name, method) != method:
        raise FulaError(f"method '{method.name}' is there already; choose another name")
    if method.end_logits and method.loss is None:
        raise FulaError(f"method '{method.name}' takes the end's logits, but has no loss")
    _METHODS[method.name] = method
    return method


def methods() -> tuple[Method, ...]:
    """Every registered method, in the order of registration."""
    return tuple(_METHODS.values())


def trained() -> tuple[str, ...]:
    """Names of the registered methods that an objective may weigh."""
    return tuple(name for name, method in _METHODS.items() if method.trained)


def method(name: str) -> Method:
    """The method of that name. Raises `FulaError` with the nearest valid one."""
    if name not in _METHODS:
        raise FulaError(f"unknown method '{name}'{nearest(name, _METHODS)}")
    return _METHODS[name]


def objective(asked: str | Mapping[str, float]) -> dict[str, float]:
    """What is minimised: a method's name, or weights by name, as positive weights by name.

    A method that is not trained has none. Raises `FulaError` for unknown names and for weights that
    are negative or all zero.

    >>> import fula_fast.methods  # which registers those that ship
    >>> objective("hint"), objective("dm"), objective({"fula": 0.5, "tlm": 2, "hint": 0})
    ({'hint': 1.0}, {}, {'fula': 0.5, 'tlm': 2.0})
    """
    if isinstance(asked, str):
        return {asked: 1.0} if method(asked).trained else {}
    for name, weight in asked.items():
        if name not in trained():
            raise FulaError(f"unknown objective '{name}'{nearest(name, trained())}")
        if not weight >= 0:
            raise FulaError(f"objective weight {name} = {weight} must be non-negative")
    if not sum(asked.values()) > 0:
        raise FulaError(
            f"objective weights {dict(asked)} must have a positive sum; give a positive weight of "
            f"{', '.join(trained())}"
        )
    return {name: float(weight) for name, weight in asked.items() if weight > 0}
