"""Options of the drivers, `--set options.KEY=…`: their types and ranges."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ..errors import nearest
from ..study.donor_spec import Marked, Table
from ..study.protocol import HIGHEST_RATE, METHODS
from ..study.spec import EvaluationSpec

Whole = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _many(kind: Any) -> Any:
    return Annotated[tuple[kind, ...], Field(min_length=1)]


def _method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'{nearest(name, METHODS)}")
    return name


def _attack(name: str) -> str:
    EvaluationSpec(robust=name)
    return name


def _shortcut(text: str) -> str:
    if Marked(shortcut=text).shortcut is None:
        raise ValueError("a sheet without a shortcut shows nothing; give one, like pixel+random")
    return text


class Options(Table):
    """Every option that some driver has; a recipe's `[options]` lists its own.

    `sites`: where empty, all. `models`: tables over the donors', with a `label`.
    """

    attack: Annotated[str, AfterValidator(_attack)] | None = None
    batch_size: Whole | None = None
    columns: Whole | None = None
    data: _many(str) | None = None
    donor: str | None = None
    epochs: Whole | None = None
    images: Whole | None = None
    latents: _many(Whole) | None = None
    lr: Annotated[float, Field(gt=0, le=HIGHEST_RATE)] | None = None
    methods: _many(Annotated[str, AfterValidator(_method)]) | None = None
    models: _many(dict[str, Any]) | None = None
    radii: _many(Positive) | None = None
    receivers: _many(str) | None = None
    seeds: _many(Seed) | None = None
    shortcuts: _many(Annotated[str, AfterValidator(_shortcut)]) | None = None
    sites: tuple[Whole, ...] | None = None
    steps: Whole | None = None
    stitch_steps: Whole | None = None
    test: Whole | None = None
    train: Whole | None = None
