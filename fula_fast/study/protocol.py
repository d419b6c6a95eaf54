"""How a stitch is trained: every option of the method, and the five published presets.

A `Protocol` is frozen; a run records the full set that it used. Presets follow the FuLA preprint
(`fula-v1`), its authors' published configuration (`fula-v2`), Balogh & Jelasity 2023 and 2025
(`balogh23`, `balogh25`), and Smith et al. 2025 (`smith25`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ..attacks.names import NONE, NamedAttack, parse
from ..attacks.settings import Attack, Settings
from ..device.precision import FAST
from ..errors import FulaError, nearest
from ..methods.weightings import Weighting, check_weighting
from .toml import Form

CLOSED_FORM = "dm"
"""The start of a stitch that is its closed form: the value of `init`."""
WEIGHTING = Form("`uniform`, `last`, `cutoff=N`, or a list of weights")
ATTACK_NAME = Form("`none`, `pgd-N`, or an attack's name")
HIGHEST_RATE = 1e6
"""Learning rates above it are mistakes: moments overflow, each optimiser in its own way."""


@dataclass(frozen=True)
class Situation:
    """What of a cell decides whether an option of its protocol acts on its numbers.

    - `trained`: the stitch has an objective.
    - `terms`: its objective holds a normalised term.
    - `weighted`: its objective holds terms that the weighting weighs.
    - `compares`: its objective compares with something of the end's own.
    - `passes`: training passes are made that change something.
    - `refreshed`: a closed form waits for training passes.
    - `batch_statistics`: running statistics move in training.
    - `closed_form`: the stitch is, or starts from, the closed form.
    - `attacked`: some images of its batches are attacked.
    - `partly_attacked`: some images of its batches are attacked, not all.
    - `robust`: robust accuracy is measured.
    - `robust_steps`: robust accuracy is measured, with steps of a given size.
    - `sgd`: the optimiser is SGD.
    """

    trained: bool
    terms: bool
    weighted: bool
    compares: bool
    passes: bool
    refreshed: bool
    batch_statistics: bool
    closed_form: bool
    attacked: bool
    partly_attacked: bool
    robust: bool
    robust_steps: bool
    sgd: bool


Rule = Callable[[Situation], bool]


@dataclass(frozen=True)
class Acts:
    """Beside an option: in which situations its value changes a number. `parts`: of a table's own
    keys, where they differ from `when`."""

    when: Rule
    parts: Mapping[str, Rule] = field(default_factory=dict)

    def acting(self, value: Any, situation: Situation) -> Any:
        """The value, of a table the keys that act; None where nothing does."""
        if not isinstance(value, Mapping):
            return value if self.when(situation) else None
        rules = {key: self.parts.get(key, self.when) for key in value}
        return {key: value[key] for key, rule in rules.items() if rule(situation)} or None


NEVER, ALWAYS = Acts(lambda s: False), Acts(lambda s: True)
TRAINED, PASSES = Acts(lambda s: s.trained), Acts(lambda s: s.passes)


def _ball(situation: Situation) -> bool:
    return situation.attacked or situation.robust


def attack_name(value: str) -> str:
    """The full name of an attack, or "none"; `ValueError` for another."""
    try:
        return value if value == NONE else parse(value).name
    except FulaError as error:
        raise ValueError(str(error)) from None


class Protocol(Settings):
    """Every option of training and evaluating one stitch, and beside it when it acts.

    - `preset`: the published configuration, of which other options replace parts.
    - `optimiser`: of the stitch's parameters.
    - `lr`: learning rate.
    - `momentum`: of SGD.
    - `weight_decay`: L2 penalty, as the optimiser adds it to gradients.
    - `schedule`: `thirds` multiplies the rate by 0.1 at one and two thirds of all epochs.
    - `epochs`: of training.
    - `batch_size`: training images in a step.
    - `init`: start of the stitch: its closed form (DM), the identity, or random numbers.
    - `dm_samples`: images behind the closed form, or `all` for one streaming pass.
    - `dm_rcond`: relative singular-value cut-off; `rows` is rows * 2**-23 (float32 pseudo-inverse
      of a matrix with that many rows). `dm_samples = "all"` takes 1e-4 for `rows`.
    - `dm_stats`: running statistics of a `dm` result: `refreshed` by the training passes, or
      `stale` (the donors' own).
    - `hook`: whether a site lies after or before the ReLU.
    - `bn`: batch norm of the donors while a stitch trains: batch statistics, or stored ones.
    - `target_bn`: the same of the pass that makes targets; unset follows `bn`.
    - `dropout`: whether the donors' dropout draws while a stitch trains.
    - `stitch_bn`: batch norm on both sides of the stitch, or none.
    - `stitch_bias`: the bias of the affine map; only `stitch_bn = "both"` may drop it.
    - `norm`: scope of the normalised distance: the whole batch tensor, or each sample.
    - `weighting`: `uniform`, `last`, `cutoff=n` (first term and the next n), or a list of weights
      from the stitch's site to the last one (normalised to sum 1).
    - `fula_soft`: FuLA's mean has one more term, the loss of `slm`. It is part of a cell's
      objective (`methods.with_soft_term`), which is where it acts.
    - `crop_padding`: pixels of padding around training images before a crop of their own size.
    - `flip`: whether half of the training images are mirrored.
    - `share`: which images of a batch are attacked when 0 < alpha < 1: the `first` floor(alpha*B),
      or a `random` floor(alpha*B) drawn from the keyed randomness.
    - `attack`: the PGD attack on training images; its ball is that of robust accuracy too.
    - `attack_target`: input from which targets of attacked images are computed.
    - `robust`: the attack behind robust accuracy; the guide lists them.
    - `stitch_data`: which data set trains the stitch (`own`: the run's), for the second paper.
    """

    preset: Annotated[str, NEVER] = "fula-v2"
    optimiser: Annotated[Literal["adam", "sgd"], TRAINED] = "adam"
    lr: Annotated[float, TRAINED] = Field(default=1e-3, gt=0, le=HIGHEST_RATE)
    momentum: Annotated[float, Acts(lambda s: s.trained and s.sgd)] = Field(default=0.9, ge=0, lt=1)
    weight_decay: Annotated[float, TRAINED] = Field(default=1e-4, ge=0, allow_inf_nan=False)
    schedule: Annotated[Literal["constant", "thirds"], TRAINED] = "thirds"
    epochs: Annotated[int, PASSES] = Field(default=30, ge=0)
    batch_size: Annotated[int, PASSES] = Field(default=128, ge=2)
    init: Annotated[Literal["dm", "identity", "random"], TRAINED] = "dm"
    dm_samples: Annotated[int | Literal["all"], Acts(lambda s: s.closed_form)] = 500
    dm_rcond: Annotated[float | Literal["rows"], Acts(lambda s: s.closed_form)] = "rows"
    dm_stats: Annotated[
        Literal["refreshed", "stale"], Acts(lambda s: not s.trained and s.batch_statistics)
    ] = "refreshed"
    hook: Annotated[Literal["post_relu", "pre_relu"], ALWAYS] = "post_relu"
    bn: Annotated[Literal["train", "eval"], Acts(lambda s: s.trained or s.refreshed)] = "train"
    target_bn: Annotated[Literal["train", "eval"] | None, Acts(lambda s: s.compares)] = None
    dropout: Annotated[Literal["eval", "train"], PASSES] = "eval"
    stitch_bn: Annotated[Literal["none", "both"], ALWAYS] = "none"
    stitch_bias: Annotated[bool, ALWAYS] = True
    norm: Annotated[Literal["batch", "sample"], Acts(lambda s: s.terms)] = "batch"
    weighting: Annotated[
        Weighting, AfterValidator(check_weighting), WEIGHTING, Acts(lambda s: s.weighted)
    ] = "uniform"
    fula_soft: Annotated[bool, NEVER] = False
    crop_padding: Annotated[int, PASSES] = Field(default=4, ge=0)
    flip: Annotated[bool, PASSES] = True
    share: Annotated[Literal["first", "random"], Acts(lambda s: s.partly_attacked)] = "random"
    attack: Annotated[
        Attack,
        Acts(
            lambda s: s.attacked,
            {"norm": _ball, "eps": _ball, "step": lambda s: s.attacked or s.robust_steps},
        ),
    ] = Attack()
    attack_target: Annotated[Literal["adversarial", "clean"], Acts(lambda s: s.attacked)] = (
        "adversarial"
    )
    robust: Annotated[str, AfterValidator(attack_name), ATTACK_NAME, ALWAYS] = NONE
    stitch_data: Annotated[Literal["own", "correlated", "sender"], ALWAYS] = "own"

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if not self.stitch_bias and self.stitch_bn == "none":
            raise ValueError("stitch_bias = false needs stitch_bn = 'both'")
        if isinstance(self.dm_rcond, float) and not 0 <= self.dm_rcond < 1:
            raise ValueError(f"dm_rcond = {self.dm_rcond} must lie in [0, 1)")
        if isinstance(self.dm_samples, int) and self.dm_samples < 1:
            raise ValueError(f"dm_samples = {self.dm_samples} must be at least 1, or 'all'")
        return self

    @property
    def resolved_target_bn(self) -> str:
        """Batch-norm rule of the target pass: batch statistics, or the donor's own."""
        return self.target_bn or self.bn

    @property
    def starts_closed(self) -> bool:
        """Whether a trained stitch starts from the closed form, where that is defined."""
        return self.init == CLOSED_FORM

    @property
    def measures_robustness(self) -> bool:
        """Whether robust accuracy is measured."""
        return self.robust != NONE

    @property
    def robust_attack(self) -> NamedAttack | None:
        """The attack behind robust accuracy, if any."""
        return parse(self.robust) if self.measures_robustness else None

    def acting(self, situation: Situation) -> dict[str, Any]:
        """The options that act in a situation, as plain values: what a cell's id depends on."""
        values = self.model_dump(mode="json") | {"target_bn": self.resolved_target_bn}
        found = {name: acts(name).acting(value, situation) for name, value in values.items()}
        return {name: value for name, value in found.items() if value is not None}

    def robust_options(self, precision: str) -> dict[str, Any]:
        """How the attack behind robust accuracy is run, as `attacks.robust_evaluate` takes it, in a
        run of that `precision`.

        A run in bfloat16 searches in that too: adversarial images are confirmed in full precision,
        and what survives is attacked again in it.
        """
        search = {"precision": FAST} if precision == FAST else {}
        return self.attack.model_dump(include={"norm", "eps", "step"}) | search


@cache
def acts(option: str) -> Acts:
    """When an option of the protocol acts, as declared beside its field."""
    (found,) = (m for m in Protocol.model_fields[option].metadata if isinstance(m, Acts))
    return found


_V2 = Protocol()
PRESETS: dict[str, Protocol] = {
    "fula-v2": _V2.model_copy(update={"robust": NONE}),
    "fula-v1": _V2.model_copy(
        update={"preset": "fula-v1", "schedule": "constant", "dm_samples": 100, "share": "first"}
    ),
    "balogh23": _V2.model_copy(
        update={
            "preset": "balogh23",
            "dm_samples": 100,
            "hook": "pre_relu",
            "attack_target": "clean",
        }
    ),
    "balogh25": _V2.model_copy(
        update={
            "preset": "balogh25",
            "weight_decay": 1e-5,
            "schedule": "constant",
            "batch_size": 256,
            "dm_samples": 100,
            "bn": "eval",
        }
    ),
    "smith25": _V2.model_copy(
        update={
            "preset": "smith25",
            "optimiser": "sgd",
            "lr": 1e-4,
            "weight_decay": 0.01,
            "schedule": "constant",
            "epochs": 10,
            "init": "random",
            "stitch_bn": "both",
        }
    ),
}
"""The published configurations; see each preset's column in the guide's table.

Stated by their sources: optimiser, rates, decay, epochs, batch, DM samples, hook, batch-norm rule,
stitch batch norm, attack share and targets. Ours where a source is silent: fula-v2's value.
"""


def protocol(preset: str = "fula-v2", **overrides: Any) -> Protocol:
    """The named preset with some options replaced; unknown names raise `FulaError`."""
    if not isinstance(preset, str) or preset not in PRESETS:
        raise FulaError(f"unknown protocol '{preset}'{nearest(str(preset), PRESETS)}")
    unknown = set(overrides) - set(Protocol.model_fields)
    if unknown:
        name = min(unknown)
        raise FulaError(f"unknown protocol option '{name}'{nearest(name, Protocol.model_fields)}")
    return Protocol.model_validate({**PRESETS[preset].model_dump(), **overrides})
