"""Sites as a user gives them: by number from 1, or by the name that `fula-fast sites` prints."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..errors import FulaError, nearest
from .toml import Form


def _one(value: Any) -> int | str:
    if isinstance(value, str):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise ValueError(
        f"{value!r} is no site; give its number from 1, or its name, as `fula-fast sites` prints it"
    )


def _one_or_pair(value: Any) -> tuple[int | str, ...]:
    if not isinstance(value, list | tuple):
        return (_one(value),)
    if len(value) not in (1, 2):
        raise ValueError(f"{value!r} is neither a site nor a pair [front site, end site]")
    return tuple(map(_one, value))


def _listed(value: Any) -> Any:
    if value in ("same", "all-pairs"):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(_one_or_pair, value))
    raise ValueError(
        f"{value!r} is none of 'same', 'all-pairs', or a list of [front, end] sites, by number or "
        "name"
    )


Site = Annotated[Any, BeforeValidator(_one), Form("a number from 1, or a name")]
"""One site, by number or name."""
Sites = Annotated[
    Any,
    BeforeValidator(_listed),
    Form("`same`, `all-pairs`, or a list of end sites and of [front, end] pairs"),
]
"""`same`, `all-pairs`, or a list of end sites and of [front, end] pairs."""


def site_number(given: int | str, names: Sequence[str], who: str) -> int:
    """The number of a site of a donor whose sites 1, 2, … have these names.

    `who`: the role and the donor, for messages. Raises `FulaError` for a number out of range and
    for a name that is none, with the nearest one.
    """
    if isinstance(given, int):
        if 1 <= given <= len(names):
            return given
        raise FulaError(f"{who} has sites 1 to {len(names)}, so site {given} is out of range")
    if given in names:
        return names.index(given) + 1
    raise FulaError(f"{who} has no site '{given}'{nearest(given, names)}")
