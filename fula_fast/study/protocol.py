"""How a stitch is trained: every option of the method, and the five published presets.

A `Protocol` is frozen; a run records the full set that it used. Presets follow the FuLA preprint
(`fula-v1`), its authors' published configuration (`fula-v2`), Balogh & Jelasity 2023 and 2025
(`balogh23`, `balogh25`), and Smith et al. 2025 (`smith25`).
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import FulaError, nearest

METHODS = ("dm", "hint", "slm", "tlm", "fula")
TRAINED = ("hint", "slm", "tlm", "fula")
HIGHEST_RATE = 1e6
"""Learning rates above it are mistakes: moments overflow, each optimiser in its own way."""

_CUTOFF = re.compile(r"cutoff=(\d+)")


class Attack(BaseModel):
    """An l-inf or l2 PGD attack on pixels in [0, 1] (eps and step in the same units)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    norm: Literal["linf", "l2"] = "linf"
    eps: float = Field(8 / 255, ge=0)
    step: float = Field(2 / 255, ge=0)
    steps: int = Field(10, ge=0)
    random_start: bool = False


class Protocol(BaseModel):
    """Every option of training and evaluating one stitch.

    Fields whose meaning is not in their name:

    - `schedule`: `thirds` multiplies the rate by 0.1 at one and two thirds of all epochs.
    - `dm_samples`: images behind the closed form, or `all` for one streaming pass.
    - `dm_rcond`: relative singular-value cut-off; `rows` is rows * 2**-23 (float32 pseudo-inverse
      of a matrix with that many rows). `dm_samples = "all"` takes 1e-4 for `rows`.
    - `dm_stats`: running statistics of a `dm` result: `refreshed` by the training passes, or
      `stale` (the donors' own).
    - `target_bn`: unset follows `bn`.
    - `norm`: scope of the normalised distance: the whole batch tensor, or each sample.
    - `weighting`: `uniform`, `last`, `cutoff=n` (first term and the next n), or a list of weights
      from the stitch's site to the last one (normalised to sum 1).
    - `share`: which images of a batch are attacked when 0 < alpha < 1: the `first` floor(alpha*B),
      or a `random` floor(alpha*B) drawn from the keyed randomness.
    - `attack_target`: input from which targets of attacked images are computed.
    - `stitch_bias`: the bias of the affine map; only `stitch_bn = "both"` may drop it.
    - `stitch_data`: which data set trains the stitch (`own`: the run's), for the second paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "fula-v2"
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0, le=HIGHEST_RATE)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "thirds"] = "thirds"
    epochs: int = Field(30, ge=0)
    batch_size: int = Field(128, ge=2)
    init: Literal["dm", "identity", "random"] = "dm"
    dm_samples: int | Literal["all"] = 500
    dm_rcond: float | Literal["rows"] = "rows"
    dm_stats: Literal["refreshed", "stale"] = "refreshed"
    hook: Literal["post_relu", "pre_relu"] = "post_relu"
    bn: Literal["train", "eval"] = "train"
    target_bn: Literal["train", "eval"] | None = None
    dropout: Literal["eval", "train"] = "eval"
    stitch_bn: Literal["none", "both"] = "none"
    stitch_bias: bool = True
    norm: Literal["batch", "sample"] = "batch"
    weighting: str | tuple[float, ...] = "uniform"
    crop_padding: int = Field(4, ge=0)
    flip: bool = True
    share: Literal["first", "random"] = "random"
    attack: Attack = Attack()
    attack_target: Literal["adversarial", "clean"] = "adversarial"
    robust: str = "none"
    stitch_data: Literal["own", "correlated", "sender"] = "own"

    @field_validator("weighting")
    @classmethod
    def _weighting(cls, value: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if isinstance(value, str):
            if value not in ("uniform", "last") and not _CUTOFF.fullmatch(value):
                raise ValueError(
                    f"weighting '{value}' is none of uniform, last, cutoff=N, or a list of weights"
                )
        elif not value or min(value) < 0 or sum(value) <= 0:
            raise ValueError("a weighting list needs non-negative weights with a positive sum")
        return value

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


def term_weights(weighting: str | tuple[float, ...], count: int) -> tuple[float, ...]:
    """Weights C_l of the `count` terms from the stitch's site to the last one; they sum to 1.

    FuLA preprint, Eq. 5. Raises `FulaError` for a list of another length.
    """
    if weighting == "uniform":
        raw: tuple[float, ...] = (1.0,) * count
    elif weighting == "last":
        raw = (0.0,) * (count - 1) + (1.0,)
    elif isinstance(weighting, str):
        kept = min(count, int(_CUTOFF.fullmatch(weighting)[1]) + 1)
        raw = (1.0,) * kept + (0.0,) * (count - kept)
    else:
        raw = tuple(weighting)
    if len(raw) != count:
        raise FulaError(
            f"weighting has {len(raw)} weights, but {count} sites follow the stitch; "
            f"give {count} weights, or 'uniform', 'last', 'cutoff=N'"
        )
    total = sum(raw)
    return tuple(w / total for w in raw)


_V2 = Protocol()
PRESETS: dict[str, Protocol] = {
    "fula-v2": _V2.model_copy(update={"robust": "none"}),
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
"""The published configurations; see each preset's column in the README's table.

Stated by their sources: optimiser, rates, decay, epochs, batch, DM samples, hook, batch-norm rule,
stitch batch norm, attack share and targets. Ours where a source is silent: fula-v2's value.
"""


def protocol(preset: str = "fula-v2", **overrides: Any) -> Protocol:
    """The named preset with some options replaced; unknown names raise `FulaError`."""
    if preset not in PRESETS:
        raise FulaError(f"unknown protocol '{preset}'{nearest(preset, PRESETS)}")
    unknown = set(overrides) - set(Protocol.model_fields)
    if unknown:
        name = min(unknown)
        raise FulaError(f"unknown protocol option '{name}'{nearest(name, Protocol.model_fields)}")
    return Protocol.model_validate({**PRESETS[preset].model_dump(), **overrides})
