"""Options of the drivers, `--set options.KEY=…`: their types and ranges."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from ..errors import nearest
from ..measures import Needs, measures
from ..study.donor_spec import Marked, SpecTable
from ..study.grid_spec import Method, Mixture
from ..study.protocol import HIGHEST_RATE, attack_name
from ..study.site_names import Site

Whole = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


Item = TypeVar("Item")
Some = Annotated[tuple[Item, ...], Field(min_length=1)]
"""A list that is not empty: `Some[str]`."""


def _once(methods: tuple[str | Mixture, ...]) -> tuple[str | Mixture, ...]:
    names = [m if isinstance(m, str) else m.name for m in methods]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"methods lists '{min(twice)}' twice")
    return methods


def _measure(name: str) -> str:
    valid = [each.name for each in measures(Needs.MOMENTS, Needs.PAIRS)]
    if name not in valid:
        raise ValueError(f"unknown measure '{name}'{nearest(name, valid)}")
    return name


def _shortcut(text: str) -> str:
    if Marked(shortcut=text).shortcut is None:
        raise ValueError("a sheet without a shortcut shows nothing; give one, like pixel+random")
    return text


class Options(SpecTable):
    """Every option that some driver has; a recipe's `[options]` lists its own.

    `sites`: where empty, all. `models`: tables over the donors', with a `label`.
    """

    attack: Annotated[str, AfterValidator(attack_name)] | None = None
    batch_size: Whole | None = None
    columns: Whole | None = None
    data: Some[str] | None = None
    depths: Some[Whole] | None = None
    donor: str | None = None
    draws: Whole | None = None
    epochs: Whole | None = None
    images: Whole | None = None
    latents: Some[Whole] | None = None
    lr: Annotated[float, Field(gt=0, le=HIGHEST_RATE)] | None = None
    measures: Some[Annotated[str, AfterValidator(_measure)]] | None = None
    methods: Annotated[Some[Method], AfterValidator(_once)] | None = None
    models: Some[dict[str, Any]] | None = None
    radii: Some[Positive] | None = None
    receivers: Some[str] | None = None
    repeats: Whole | None = None
    sample_counts: Some[Annotated[int, Field(strict=True, ge=20)]] | None = None
    seeds: Some[Seed] | None = None
    shortcuts: Some[Annotated[str, AfterValidator(_shortcut)]] | None = None
    sites: tuple[Site, ...] | None = None
    steps: Whole | None = None
    stitch_steps: Whole | None = None
    test: Whole | None = None
    train: Whole | None = None
    widths: Some[Whole] | None = None
