"""The specification of a run: data, donors, grid, protocol, evaluation, engine.

A spec is a TOML file, checked here and frozen. Everything that can be checked without building a
model is checked before anything is trained; what needs shapes is checked by `fula_fast.study.plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import FulaError, check_name, nearest
from ..measures.registry import IN_SWEEPS, measures
from ..methods import METHODS, method, methods, objective
from .donor_spec import DataSpec, DonorSpec, OneShortcut, Seed, SpecTable
from .protocol import PRESETS, Protocol, attack_name, protocol
from .similarity_spec import SimilaritySpec
from .site_names import Sites
from .toml import Overrides, apply_overrides, explain, fractions, plain, read_toml

T = TypeVar("T", bound=SpecTable)


class Mixture(SpecTable):
    """A named objective, `{name = "half", fula = 0.5, tlm = 0.5}`: non-negative weights of trained
    methods by name."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat]
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
Many = Annotated[tuple[Item, ...], BeforeValidator(_several)]
"""A list, where a single value stands for a list of one: `Many[str]`."""
Method = Annotated[
    Annotated[str, AfterValidator(_method), Tag("<name>")] | Annotated[Mixture, Tag("<mixture>")],
    Discriminator(_method_kind),
]
Weighting = Annotated[Any, BeforeValidator(_weighting)]
Subset = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_subset)]


class GridSpec(SpecTable):
    """The grid: every combination of these lists is a cell.

    `front` × `end` are donor names, or `pairs` lists [front, end] names explicitly.
    `sites`: `same` (front sites mapped by depth), `all-pairs`, or a list of [front, end] sites,
    where a lone one is an end site with the front site of the same depth. Sites are numbers from
    1, or names as `fula-fast sites` prints them.
    `weightings` apply to objectives with a part that they weigh; unset: the protocol's.
    `protocols`: preset names; unset: the protocol's. `subset`: first n classes, or "all".
    `data_seeds`: order, crops and DM samples; unset: each cell's own seed.
    `axes`: any protocol option with its list of values.
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
        tuple[Seed, ...] | None, BeforeValidator(lambda v: v if v is None else _several(v))
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


class EvaluationSpec(SpecTable):
    """What is measured on finished cells.

    `sets`: test sets beside the cell's own (which carries the cell's shortcut, when it has one).
    `robust`: the attack behind robust accuracy; unset: the protocol's. `robust_images`: how many
    test images are attacked, all when unset. `measures`: optional columns.
    """

    batch_size: int = Field(500, ge=1)
    sets: Many[Literal["shortcut", "clean", "rolled"]] = ()
    robust: Annotated[str, AfterValidator(attack_name)] | None = None
    robust_images: int | None = Field(None, ge=1)
    measures: Many[str] = ()

    @field_validator("measures")
    @classmethod
    def _measures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        valid = [each.name for each in measures(*IN_SWEEPS)]
        for name in value:
            if name not in valid:
                raise ValueError(f"unknown measure '{name}'{nearest(name, valid)}")
        return value


class SlurmSpec(SpecTable):
    """Where Slurm puts a run's workers: `[engine.slurm]`.

    `hours`: of one job; what it has not finished goes on from its wave's checkpoint in the next.
    `gpus`: of a worker (0: processors alone). `sbatch`: more `#SBATCH` lines, `{"exclude": "n7"}`.
    """

    partition: str | None = None
    account: str | None = None
    gpu_type: str | None = None
    gpus: int = Field(1, ge=0)
    cpus: int = Field(4, ge=1)
    memory: str = "32GB"
    hours: float = Field(24.0, gt=0)
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)


class RaySpec(SpecTable):
    """Which Ray cluster runs a run's workers: `[engine.ray]`. `address` None: one of its own on
    this machine. `gpus`, `cpus`: that a worker takes."""

    address: str | None = None
    gpus: float = Field(1.0, ge=0)
    cpus: float = Field(1.0, gt=0)


class EngineSpec(SpecTable):
    """How the cells are computed; nothing here changes what they mean.

    `kind`: what runs the waves: processes of this machine, Slurm, or Ray. `workers`: how many at
    once; unset: one for each GPU of this machine, or one.

    `memory`: budget of a wave: "8GiB", "60%" of what is free, or bytes; unset: 85% of a GPU's free
    memory, 60% of a CPU's available memory. `compile`: also a captured step's stages go through
    `torch.compile` (an H100 gains nothing by it, and waits ten seconds more for its first step).
    """

    mode: Literal["auto", "eager", "compiled", "captured"] = "auto"
    compile: bool = False
    executor: Literal["wave", "solo"] = "wave"
    precision: Literal["auto", "fp64", "fp32", "tf32", "bf16"] = "auto"
    memory: str | int | None = None
    device: str = "auto"
    kind: Literal["local", "slurm", "ray"] = "local"
    workers: int | None = Field(None, ge=1)
    slurm: SlurmSpec = SlurmSpec()
    ray: RaySpec = RaySpec()

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | int | None) -> str | int | None:
        from ..device.memory import budget

        if value is not None:
            budget(value, available=1 << 40)
        return value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(f"device '{value}' is none of auto, cpu, cuda, cuda:N")
        return value


class Spec(SpecTable):
    """A whole run. Build it with `load_spec`, which fills in what donors inherit."""

    name: str = "sweep"
    data: DataSpec = DataSpec()
    donors: dict[str, DonorSpec]
    grid: GridSpec | None = None
    similarity: SimilaritySpec | None = None
    protocol: dict[str, Any] = Field(default_factory=dict)
    evaluation: EvaluationSpec = EvaluationSpec()
    engine: EngineSpec = EngineSpec()

    @field_validator("name")
    @classmethod
    def _file_name(cls, name: str) -> str:
        try:
            return check_name(name, "name")
        except FulaError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _known_donors(self) -> Spec:
        if self.grid is None and self.similarity is None:
            raise ValueError(
                "key 'grid' is missing, and so is 'similarity'; a spec needs a [grid] of stitched "
                "models, a [similarity] table, or both"
            )
        asked = self.similarity
        named = [("grid", n) for pair in self.grid_pairs for n in pair]
        if asked is not None:
            named += [("similarity", n) for n in (*asked.donors, *sum(asked.pairs, ()))]
        for table, name in named:
            if name not in self.donors:
                raise ValueError(
                    f"{table} names donor '{name}', which has no [donors.{name}] table"
                    f"{nearest(name, self.donors)}"
                )
        return self

    @property
    def grid_pairs(self) -> tuple[tuple[str, str], ...]:
        """(front, end) names of the grid's pairs; none without a grid."""
        return self.grid.donor_pairs() if self.grid is not None else ()

    def donor(self, name: str) -> DonorSpec:
        """The donor of that name; raises `FulaError` where there is none."""
        if name not in self.donors:
            raise FulaError(f"no donor '{name}' in the spec{nearest(name, self.donors)}")
        return self.donors[name]

    @property
    def base_protocol(self) -> Protocol:
        """The preset of `[protocol]` with its overrides."""
        return self.protocol_for(self.protocol.get("preset", "fula-v2"))

    def protocol_for(self, preset: str, **axes: Any) -> Protocol:
        """A preset with the spec's overrides, and one value of each axis."""
        options = {k: v for k, v in self.protocol.items() if k != "preset"} | axes
        if self.evaluation.robust is not None:
            options.setdefault("robust", self.evaluation.robust)
        try:
            return protocol(preset, **options)
        except FulaError as error:
            raise FulaError(f"[protocol] {error}") from None
        except ValidationError as error:
            raise explain(error, Protocol, "protocol") from None

    def protocols(self) -> tuple[Protocol, ...]:
        """Every preset of the grid with every combination of the axes' values, in order."""
        axes, presets = (self.grid.axes, self.grid.protocols) if self.grid else ({}, ())
        return tuple(
            self.protocol_for(preset, **dict(zip(axes, values, strict=True)))
            for preset in presets or (self.base_protocol.preset,)
            for values in product(*axes.values())
        )

    def dump(self) -> dict[str, Any]:
        """The resolved spec as plain values; `load_spec` reads it back to an equal spec."""
        return _plain(self.model_dump(mode="json"))

    def study(self) -> dict[str, Any]:
        """The part of `dump` that decides results: no engine, no place or backend of the data."""
        tables = self.dump()
        del tables["engine"]
        for data in (tables["data"], *(d["data"] for d in tables["donors"].values())):
            for key in ("data_dir", "download", "stream"):
                data.pop(key, None)
        return tables


def _plain(value: Any, key: str = "") -> Any:
    """Without unset values, as TOML has no null; in lists an unset value has a word."""
    if isinstance(value, Mapping):
        return {k: _plain(v, k) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [{"subset": "all"}.get(key, "none") if v is None else _plain(v) for v in value]
    return value


def parse_table(model: type[T], values: Mapping[str, Any], name: str) -> T:
    """One table of a spec by itself; raises `FulaError` as `load_spec` does."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain(error, model, name) from None


def load_spec(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Spec:
    """The checked spec in a TOML file, a shipped recipe (by name), or a mapping.

    `overrides`: texts "a.b=c" as of `--set`, (dotted key, value) pairs, or a mapping of them.
    Raises `FulaError`, one line that names the table, the value, the rule and the nearest valid
    name.
    """
    table = dict(source) if isinstance(source, Mapping) else read_toml(source)
    table = fractions(plain(apply_overrides(table, overrides)))
    spec = parse_table(Spec, table, "")
    _check_axes_free(spec)
    spec.protocols()
    for weighting in spec.grid.weightings if spec.grid else ():
        spec.protocol_for(spec.base_protocol.preset, weighting=weighting)
    return _inherited(spec)


def _check_axes_free(spec: Spec) -> None:
    for option in spec.grid.axes if spec.grid else ():
        if option in spec.protocol:
            raise FulaError(
                f"[protocol] {option} and [grid.axes] {option} both set the same option; keep one"
            )


def _inherited(spec: Spec) -> Spec:
    """Donors with their names, and with the run's data and augmentation where they set none."""
    base = spec.base_protocol
    filled = {
        name: donor.model_copy(
            update={
                "name": name,
                "data": donor.data or spec.data,
                "crop_padding": _first(donor.crop_padding, base.crop_padding),
                "flip": _first(donor.flip, base.flip),
            }
        )
        for name, donor in spec.donors.items()
    }
    asked = spec.similarity and spec.similarity.paired(spec.grid_pairs, tuple(spec.donors))
    return spec.model_copy(update={"donors": filled, "similarity": asked})


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value
