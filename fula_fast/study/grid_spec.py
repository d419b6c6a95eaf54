"""The table of a spec that says which stitched models there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    model_validator,
)

from ..attacks.settings import no_truth
from ..errors import FulaError, nearest
from ..methods import METHODS, method, methods, objective
from .donor_spec import OneShortcut, Seed, SpecTable
from .protocol import PRESETS, WEIGHTING, Protocol
from .site_names import Sites
from .toml import Form


class Mixture(SpecTable):
    """A named objective, `{name = "half", fula = 0.5, tlm = 0.5}`: non-negative weights of trained
    methods by name.

    - `name`: of the mixture, in tables and plots.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Annotated[FiniteFloat, BeforeValidator(no_truth)]]
    name: str = Field(min_length=1)

    @model_validator(mode="after")
    def _some_weight(self) -> Mixture:
        if self.name in (each.name for each in methods()):
            raise ValueError(f"a mixture cannot be called '{self.name}', a method's own name")
        self.objective  # noqa: B018  which refuses what it cannot be
        return self

    @property
    def objective(self) -> dict[str, float]:
        """The positive weights by method."""
        try:
            return objective(self.__pydantic_extra__)
        except FulaError as error:
            raise ValueError(f"mixture '{self.name}': {error}") from None


def _several(value: Any) -> Any:
    """A single value stands for a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def _method(value: str) -> str:
    try:
        return method(value).name
    except FulaError as error:
        raise ValueError(str(error)) from None


def _method_kind(value: Any) -> str:
    return "<mixture>" if isinstance(value, Mapping | Mixture) else "<name>"


def _subset(value: Any) -> Any:
    return None if value == "all" else value


def _weighting(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
        return tuple(float(v) for v in value)
    raise ValueError(f"{value!r} is none of 'uniform', 'last', 'cutoff=N', or a list of weights")


Item = TypeVar("Item")
LONE = Form("or one of them alone")
Many = Annotated[tuple[Item, ...], BeforeValidator(_several), LONE]
"""A list, where a single value stands for a list of one: `Many[str]`."""
Method = Annotated[
    Annotated[str, AfterValidator(_method), Tag("<name>")] | Annotated[Mixture, Tag("<mixture>")],
    Discriminator(_method_kind),
    Form("a method's name, or a mixture"),
]
Weighting = Annotated[Any, BeforeValidator(_weighting), WEIGHTING]
Subset = Annotated[
    Annotated[int, Field(ge=1)] | None, BeforeValidator(_subset), Form("a whole number, or `all`")
]


class GridSpec(SpecTable):
    """The grid: every combination of these lists is a cell.

    - `front`, `end`: names of donors; every front goes with every end.
    - `pairs`: instead of them, [front, end] names explicitly.
    - `sites`: `same` (front sites mapped by depth), `all-pairs`, or a list of [front, end] sites,
      where a lone one is an end site with the front site of the same depth. Sites are numbers from
      1, or names as `fula-fast sites` prints them.
    - `methods`: how stitches are found: names, or mixtures as
      `{name = "half", fula = 0.5, tlm = 0.5}`.
    - `weightings`: apply to objectives with a part that they weigh; unset: the protocol's.
    - `protocols`: names of presets; unset: the protocol's.
    - `alpha`: attacked share of each training batch.
    - `shortcut`: marker on all images.
    - `subset`: trained on the first n classes, or on `all`.
    - `seeds`: of the start, where it is drawn, and of order, crops and DM images.
    - `data_seeds`: of order, crops and DM images alone; unset: each cell's own seed.
    - `axes`: any protocol option with its list of values.
    """

    front: Many[str] = ()
    end: Many[str] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    sites: Sites = "same"
    methods: Many[Method] = METHODS
    weightings: Many[Weighting] = ()
    protocols: Many[str] = ()
    alpha: Many[Annotated[float, Field(ge=0, le=1)]] = (0.0,)
    shortcut: Many[OneShortcut] = (None,)
    subset: Many[Subset] = (None,)
    seeds: Many[Seed] = (0,)
    data_seeds: Annotated[
        tuple[Seed, ...] | None, BeforeValidator(lambda v: v if v is None else _several(v)), LONE
    ] = None
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> GridSpec:
        if bool(self.pairs) == bool(self.front or self.end):
            raise ValueError("give front and end (lists of donor names), or pairs, one of the two")
        if not self.pairs and not (self.front and self.end):
            raise ValueError("front and end both need at least one donor name")
        for key in ("methods", "alpha", "shortcut", "subset", "seeds", "data_seeds", "sites"):
            if getattr(self, key) == ():
                raise ValueError(f"{key} is empty; the grid would have no cells")
        return self

    @model_validator(mode="after")
    def _known_names(self) -> GridSpec:
        for preset in self.protocols:
            if preset not in PRESETS:
                raise ValueError(f"unknown protocol '{preset}'{nearest(preset, PRESETS)}")
        names = [m if isinstance(m, str) else m.name for m in self.methods]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"methods lists '{min(twice)}' twice")
        for option in self.axes:
            _check_axis(option, self.axes[option])
        return self

    def donor_pairs(self) -> tuple[tuple[str, str], ...]:
        """(front, end) names of every pair, in order."""
        return self.pairs or tuple((f, e) for f in self.front for e in self.end)


_AXIS_ELSEWHERE = {"weighting": "grid.weightings", "preset": "grid.protocols"}


def _check_axis(option: str, values: tuple[Any, ...]) -> None:
    if option in _AXIS_ELSEWHERE:
        raise ValueError(f"axes.{option}: use {_AXIS_ELSEWHERE[option]}")
    if option not in Protocol.model_fields:
        near = nearest(option, set(Protocol.model_fields) - set(_AXIS_ELSEWHERE))
        raise ValueError(f"axes: unknown protocol option '{option}'{near}")
    if not values:
        raise ValueError(f"axes.{option} is empty; the grid would have no cells")
