"""The table of a spec that says which stitched models there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

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
from ..methods import METHODS, TrainingStage, method, methods, objective, trained
from ..methods.staging import SUM, united
from ..methods.weightings import Weighting, check_weighting
from .donor_spec import OneShortcut, Seed, SpecTable
from .protocol import PRESETS, WEIGHTING, Protocol
from .site_names import Sites
from .toml import Form


def _weighting(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
        return tuple(float(v) for v in value)
    raise ValueError(f"{value!r} is none of 'uniform', 'last', 'cutoff=N', or a list of weights")


def _own_weighting(value: Any) -> Weighting | None:
    return None if value is None else check_weighting(_weighting(value))


class Weights(SpecTable):
    """Non-negative weights of trained methods, by name, among other keys."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Annotated[FiniteFloat, BeforeValidator(no_truth)]]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        known = (*cls.model_fields, *trained())
        wrong = [key for key in values if key not in known] if isinstance(values, Mapping) else []
        if wrong:
            raise ValueError(f"unknown objective or key '{wrong[0]}'{nearest(wrong[0], known)}")
        return values

    @property
    def objective(self) -> dict[str, float]:
        """The positive weights by method; `ValueError` for what cannot be one."""
        try:
            return objective(self.__pydantic_extra__)
        except FulaError as error:
            raise ValueError(str(error)) from None


class StageSpec(Weights):
    """A part of a training, `{fula = 1, weighting = "last", epochs = 15}`: weights of trained
    methods by name.

    - `weighting`: of this part's terms; unset: the grid's or the protocol's.
    - `epochs`: of this part; unset: it shares evenly what the parts with a number leave.
    """

    weighting: Annotated[Weighting | None, BeforeValidator(_own_weighting), WEIGHTING] = None
    epochs: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _some_weight(self) -> StageSpec:
        self.objective  # noqa: B018  which refuses what it cannot be
        return self

    @property
    def stage(self) -> TrainingStage:
        """As methods take it; a weighting only where it weighs something."""
        weighs = any(method(name).weighted for name in self.objective)
        return TrainingStage(self.objective, self.weighting if weighs else None, self.epochs)


class Mixture(Weights):
    """A named objective, `{name = "half", fula = 0.5, tlm = 0.5}`: non-negative weights of trained
    methods by name; or objectives that follow each other, in `stages`.

    - `name`: of the mixture, in tables and plots.
    - `stages`: instead of weights, the parts of its training, one after another. Their epochs sum
      to the protocol's. Learning-rate schedule and optimiser run on over all of them.
    - `combine`: how gradients of several methods become one: their weighted `sum`, or `pcgrad`,
      which projects each onto the normal plane of those that conflict with it (Yu et al. 2020).
    """

    name: str = Field(min_length=1)
    stages: tuple[StageSpec, ...] | None = None
    combine: Literal["sum", "pcgrad"] = SUM

    @model_validator(mode="after")
    def _some_weight(self) -> Mixture:
        if self.name in (each.name for each in methods()):
            raise ValueError(f"a mixture cannot be called '{self.name}', a method's own name")
        if self.stages == ():
            raise ValueError(f"mixture '{self.name}': stages is empty; give one at least")
        if self.stages and self.__pydantic_extra__:
            named = min(self.__pydantic_extra__)
            raise ValueError(
                f"mixture '{self.name}' has stages, and {named} beside them; "
                f"give {named} in a stage"
            )
        self.objective  # noqa: B018  which refuses what it cannot be
        return self

    @property
    def objective(self) -> dict[str, float]:
        """The positive weights by method; those of all stages together."""
        if self.stages:
            return united([stage.objective for stage in self.stages])
        try:
            return super().objective
        except ValueError as error:
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


Item = TypeVar("Item")
LONE = Form("or one of them alone")
Many = Annotated[tuple[Item, ...], BeforeValidator(_several), LONE]
"""A list, where a single value stands for a list of one: `Many[str]`."""
Method = Annotated[
    Annotated[str, AfterValidator(_method), Tag("<name>")] | Annotated[Mixture, Tag("<mixture>")],
    Discriminator(_method_kind),
    Form("a method's name, or a mixture"),
]
OneWeighting = Annotated[Any, BeforeValidator(_weighting), WEIGHTING]
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
    - `methods`: how stitches are found: names, mixtures as
      `{name = "half", fula = 0.5, tlm = 0.5}`, or objectives one after another as
      `{name = "ffm-tlm", stages = [{fula = 1, weighting = "last"}, {tlm = 1}]}`.
    - `weightings`: apply to objectives with a part that they weigh; unset: the protocol's.
    - `protocols`: names of presets; unset: the protocol's.
    - `alpha`: attacked share of each training batch.
    - `shortcut`: marker on all images; unset: none.
    - `subset`: trained on the first n classes, or on `all`; unset: all.
    - `seeds`: of the start, where it is drawn, and of order, crops and DM images.
    - `data_seeds`: of order, crops and DM images alone; unset: each cell's own seed.
    - `axes`: any protocol option with its list of values.
    """

    front: Many[str] = ()
    end: Many[str] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    sites: Sites = "same"
    methods: Many[Method] = METHODS
    weightings: Many[OneWeighting] = ()
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
    if None in values:
        raise ValueError(
            f"axes.{option} holds None, which TOML cannot write; give values, or leave the axis out"
        )
