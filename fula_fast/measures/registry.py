"""What a measure of similarity is, and the list of them: one frozen record each, without torch.

Everything that depends on the set of measures (validation of names, help texts, tables, the report)
derives from these records. A measure's functions are named as "module:function" and imported on
first use, so a plan can be checked without torch. The records that ship are in `catalogue`; another
package adds one by `register(Measure(...))`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from types import MappingProxyType
from typing import Any

from ..errors import FulaError, nearest

Option = float | int | str | bool


class Needs(StrEnum):
    """What a measure is computed from, which decides how activations are gathered."""

    MOMENTS = "moments"
    """Second moments of all samples, gathered in one pass: a `pair.Pair`."""
    PAIRS = "pairs"
    """Matrices of pairs of samples, (n, n) each, of a subset of the images held in memory."""
    OUTPUTS = "outputs"
    """The two models' logits and the labels: `outputs.Outputs`."""
    SITES = "sites"
    """Of a stitched model: its distances to the end donor, site by site: `sites.Distances`."""
    STITCH = "stitch"
    """Of a stitched model: the tensors of its trained map, by name."""


COMPARES = (Needs.MOMENTS, Needs.PAIRS, Needs.OUTPUTS)
"""The needs of measures of any two representations; the others are of stitched models alone."""

OF_LABELS = ("accuracy", "agreement_right_wrong", "kappa")
"""Columns and measures that compare answers with labels."""


class Invariance(StrEnum):
    """A change of one side's features that leaves a measure as it is."""

    SHIFT = "shift"
    SCALE = "scale"
    ROTATION = "rotation"
    LINEAR = "linear"


class Features(StrEnum):
    """How an activation becomes a matrix: of maps (N, C, H, W), of tokens (N, T, D)."""

    MEAN = "mean"
    FLAT = "flat"
    POSITIONS = "positions"
    CLS = "cls"
    ALL = "all"


MAP_FEATURES = (Features.MEAN, Features.FLAT, Features.POSITIONS)
TOKEN_FEATURES = (Features.CLS, Features.MEAN, Features.ALL)


@dataclass(frozen=True)
class Measure:
    """One measure of similarity or distance between two representations of the same samples.

    `name`: as in a spec and as a column. `label`: in tables and pictures. `low`, `high`: the range;
    `best`: the value of a representation with itself, at one of its ends (NaN is never returned).
    `prepare` turns one side's matrix (n, p) into what `function` compares; `matrices`: how many
    (n, n) matrices that holds. `options`: keyword arguments and their defaults, of `prepare` where
    `needs` is pairs, else of `function`. `fixed`: keyword arguments that make this record of a
    shared function. `least`: fewest samples it is defined for. `settles`: whether the value tends
    to one of the population as samples grow (neighbourhoods of fixed size do not).

    `columns`: of a sweep's table, each with its meaning; unset: one named as the measure, of two
    representations a list over the sites from the cell's own end site on. `function` of SITES and
    STITCH gives one value for each column, in their order.
    """

    name: str
    label: str
    needs: Needs
    function: str
    low: float
    high: float
    best: float
    reads: str
    careful: str
    source: str
    symmetric: bool = True
    invariances: frozenset[Invariance] = frozenset()
    prepare: str | None = None
    matrices: int = 1
    options: Mapping[str, Option] = field(default_factory=dict)
    fixed: Mapping[str, Option] = field(default_factory=dict)
    map_features: Features = Features.MEAN
    token_features: Features = Features.MEAN
    least: int = 2
    settles: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.needs in COMPARES and not self.columns:
            object.__setattr__(self, "columns", {self.name: _column(self)})
        for name in ("options", "fixed", "columns"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        _check(self)

    @property
    def similarity(self) -> bool:
        """Whether larger means more similar; a distance otherwise."""
        return self.best == self.high

    @property
    def worst(self) -> float:
        """The value of representations that share nothing: 0 of what may be negative."""
        return max(self.low, 0.0) if self.similarity else self.high

    def bound(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """All keyword arguments, the given `options` in place of their defaults.

        Raises `FulaError` for an option that the measure does not have.
        """
        for name in options:
            if name not in self.options:
                raise FulaError(
                    f"measure {self.name!r} has no option {name!r}{nearest(name, self.options)}"
                    if self.options
                    else f"measure {self.name!r} takes no options, got {name!r}; leave it out"
                )
        return {**self.fixed, **self.options, **options}

    def load(self) -> Callable[..., Any]:
        """The function that compares two prepared sides."""
        return _load(self.function)

    def load_prepare(self) -> Callable[..., Any]:
        """The function that prepares one side."""
        return _load(self.prepare or PREPARED[self.needs])


def _column(measure: Measure) -> str:
    """What a sweep's column of a measure of any two representations says."""
    if measure.needs is Needs.OUTPUTS:
        return f"{measure.label} with the end donor: {measure.reads}; {measure.careful}"
    images = "" if measure.needs is Needs.MOMENTS else ", on evaluation.samples images"
    return (
        f"list, from the cell's own end site to the last: {measure.label} of stitched model and "
        f"end donor, maps and tokens averaged over positions{images}: {measure.reads}"
    )


PREPARED = {
    Needs.MOMENTS: "fula_fast.measures.pair:Side.of",
    Needs.OUTPUTS: "fula_fast.measures.outputs:Outputs.of",
}
"""How a side is prepared where the record does not say."""


def _check(measure: Measure) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", measure.name):
        raise FulaError(
            f"measure name {measure.name!r} must be lower case letters, digits and underscores, "
            "as a column's is"
        )
    if measure.best not in (measure.low, measure.high):
        raise FulaError(
            f"measure {measure.name!r}: best {measure.best} must be an end of its range "
            f"[{measure.low}, {measure.high}]"
        )
    if not measure.columns:
        raise FulaError(
            f"measure {measure.name!r} needs {measure.needs}: give its `columns`, a dict of names "
            "and what they say"
        )
    if (measure.prepare is None) != (measure.needs is not Needs.PAIRS):
        raise FulaError(
            f"measure {measure.name!r} needs {measure.needs}: `prepare` is given exactly where it "
            "needs pairs"
        )
    for place in (measure.function, measure.prepare):
        if place is not None and not re.fullmatch(r"[\w.]+:[\w.]+", place):
            raise FulaError(f"measure {measure.name!r}: {place!r} must read 'module:function'")


def _load(place: str) -> Callable[..., Any]:
    module, _, names = place.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


_MEASURES: dict[str, Measure] = {}


def register(measure: Measure) -> Measure:
    """Add a measure under its name. Raises `FulaError` where the name is taken by another."""
    if _MEASURES.get(measure.name, measure) != measure:
        raise FulaError(
            f"measure {measure.name!r} is registered already, as {_MEASURES[measure.name].label!r};"
            " choose another name"
        )
    _MEASURES[measure.name] = measure
    return measure


def measures(*needs: Needs) -> tuple[Measure, ...]:
    """The registered measures of these needs, in the order of their registration; by default those
    that compare any two representations."""
    _ship()
    return tuple(m for m in _MEASURES.values() if m.needs in (needs or COMPARES))


def measure(name: str) -> Measure:
    """The measure of that name. Raises `FulaError` with the nearest valid name."""
    _ship()
    if name not in _MEASURES:
        raise FulaError(f"unknown measure {name!r}{nearest(name, _MEASURES)}")
    return _MEASURES[name]


def _ship() -> None:
    """The catalogue registers its records when it is imported; it imports this module."""
    import_module(f"{__package__}.catalogue")
