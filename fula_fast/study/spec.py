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

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from ..device.mode import ModeName
from ..device.precision import PrecisionName
from ..errors import FulaError, check_name, nearest, not_none
from ..measures.registry import Needs, measures
from .donor_spec import DataSpec, DonorSpec, InputSpec, SpecTable
from .grid_spec import GridSpec, Many
from .protocol import ATTACK_NAME, Protocol, attack_name, protocol
from .similarity_spec import SimilaritySpec
from .toml import Form, Overrides, apply_overrides, explain, fractions, plain, read_toml

T = TypeVar("T", bound=SpecTable)


class EvaluationSpec(SpecTable):
    """What is measured on finished cells.

    - `batch_size`: test images at once.
    - `sets`: test sets beside the cell's own (which carries the cell's shortcut, when it has one).
    - `robust`: the attack behind robust accuracy; unset: the protocol's.
    - `robust_images`: how many test images are attacked; unset: all.
    - `measures`: names of measures, each of which adds columns.
    - `samples`: images on which measures of pairs of samples are taken; of `[similarity]`, with
      the same number and its seed 0, these are the same images.
    """

    batch_size: int = Field(default=500, ge=1)
    sets: Many[Literal["shortcut", "clean", "rolled"]] = ()
    robust: Annotated[str, AfterValidator(attack_name), ATTACK_NAME] | None = None
    robust_images: int | None = Field(default=None, ge=1)
    measures: Many[Annotated[str, Form("a measure's name")]] = ()
    samples: int = Field(default=2000, ge=2)

    @field_validator("measures")
    @classmethod
    def _measures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        valid = [each.name for each in measures(*Needs)]
        for name in value:
            if name not in valid:
                raise ValueError(f"unknown measure '{name}'{nearest(name, valid)}")
        return value


class SlurmSpec(SpecTable):
    """Where Slurm puts a run's workers: `[engine.slurm]`.

    - `partition`, `account`: as `sbatch` takes them; unset: the cluster's own.
    - `gpu_type`: the kind of GPU, as the cluster calls it; unset: any.
    - `gpus`: of a worker (0: processors alone).
    - `cpus`: of a worker.
    - `memory`: main memory of a worker, as Slurm writes it.
    - `hours`: of one job; what it has not finished goes on from its wave's checkpoint in the next.
    - `sbatch`: more `#SBATCH` lines, `{"exclude": "n7"}`.
    """

    partition: str | None = None
    account: str | None = None
    gpu_type: str | None = None
    gpus: int = Field(default=1, ge=0)
    cpus: int = Field(default=4, ge=1)
    memory: str = "32GB"
    hours: float = Field(default=24.0, gt=0)
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)


class RaySpec(SpecTable):
    """Which Ray cluster runs a run's workers: `[engine.ray]`.

    - `address`: of the cluster; unset: one of its own on this machine.
    - `gpus`, `cpus`: that a worker takes.
    """

    address: str | None = None
    gpus: float = Field(default=1.0, ge=0)
    cpus: float = Field(default=1.0, gt=0)


class EngineSpec(SpecTable):
    """How the cells are computed; nothing here changes what they mean.

    - `mode`: how a wave's step is run; `auto`: captured in one CUDA graph on a GPU, and on a CPU
      compiled where the work pays for it.
    - `compile`: also a captured step's stages go through `torch.compile` (an H100 gains nothing by
      it, and waits ten seconds more for its first step).
    - `executor`: waves of lanes, or cell by cell in plain PyTorch (slow; the tests' oracle).
    - `precision`: of activations; `auto`: bf16 where the device has instructions for it.
    - `memory`: budget of a wave: "8GiB", "60%" of what is free, or bytes; unset: 85% of a GPU's
      free memory, 60% of a CPU's available memory.
    - `device`: where to compute; `auto`: a GPU where there is one.
    - `kind`: what runs the waves: processes of this machine, Slurm, or Ray.
    - `workers`: how many at once; unset: one for each GPU of this machine, or one.
    - `track`: an experiment tracker that is told of the run's progress, too (offline where it has
      no account).
    - `slurm`, `ray`: where those put their workers.
    """

    mode: Literal["auto", ModeName] = "auto"
    compile: bool = False
    executor: Literal["wave", "solo"] = "wave"
    precision: Literal["auto", PrecisionName] = "auto"
    memory: str | int | None = None
    device: Annotated[str, Form("`auto`, `cpu`, `cuda`, or `cuda:N`")] = "auto"
    kind: Literal["local", "slurm", "ray"] = "local"
    workers: int | None = Field(default=None, ge=1)
    track: Literal["wandb", "tensorboard"] | None = None
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
    """A whole run. Build it with `load_spec`, which fills in what donors inherit.

    - `name`: of the run and its folder, `runs/NAME`.
    - `data`: the images that stitches are trained and tested on.
    - `donors`: the networks, by names of your own.
    - `grid`: which stitched models there are: each combination is a cell.
    - `similarity`: donors compared without training, by measures of similarity.
    - `protocol`: how stitches are trained.
    - `evaluation`: what is measured on finished cells.
    - `engine`: how and where cells are computed; changes no result's meaning.
    """

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
    def asked_grid(self) -> GridSpec:
        """`grid`, of a spec that is known to have one."""
        return not_none(self.grid)

    @property
    def asked_similarity(self) -> SimilaritySpec:
        """`similarity`, of a spec that is known to ask for it."""
        return not_none(self.similarity)

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
        """A preset with the spec's overrides, and one value of each axis.

        Raises `FulaError` for an option or value that no protocol has.
        """
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
    """One table of a spec by itself, its values made plain, texts like "8/255" numbers; raises
    `FulaError` as `load_spec` does."""
    try:
        return model.model_validate(fractions(plain(values, name)))
    except ValidationError as error:
        raise explain(error, model, name) from None


def load_spec(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Spec:
    """The checked spec in a TOML file, a shipped recipe (by name), or a mapping.

    `overrides`: texts "a.b=c" as of `--set`, (dotted key, value) pairs, or a mapping of them.
    Raises `FulaError`, one line that names the table, the value, the rule and the nearest valid
    name.
    """
    table = dict(source) if isinstance(source, Mapping) else read_toml(source)
    spec = parse_table(Spec, apply_overrides(table, overrides), "")
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
                "input": _input_of(donor),
            }
        )
        for name, donor in spec.donors.items()
    }
    asked = spec.similarity and spec.similarity.paired(spec.grid_pairs, tuple(spec.donors))
    return spec.model_copy(update={"donors": filled, "similarity": asked})


def _input_of(donor: DonorSpec) -> InputSpec | None:
    """A donor's input, with what the library of a pretrained model says where it sets nothing."""
    from ..models.libraries import library_input

    known = library_input(donor.model, donor.build_options())
    if not known:
        return donor.input
    asked = {} if donor.input is None else donor.input.model_dump(exclude_unset=True)
    replaced = {
        "resize": asked.get("size") is not None or asked.get("crop") == "none",
        "crop": asked.get("resize") is not None,
        "mean": asked.get("mean") is not None,
        "std": asked.get("mean") is not None,
    }
    kept = {k: v for k, v in known.items() if not replaced.get(k)}
    return parse_table(InputSpec, kept | asked, f"donors.{donor.name}.input")


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value
