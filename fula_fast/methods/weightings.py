"""Weights of the normalised terms behind a stitch (FuLA preprint, Eq. 5). Needs no torch."""

from __future__ import annotations

import re

from ..errors import FulaError

Weighting = str | tuple[float, ...]
"""`uniform`, `last`, `cutoff=N` (the first term and the next N), or a weight for each term."""

_CUTOFF = re.compile(r"cutoff=(\d+)")


def check_weighting(value: Weighting) -> Weighting:
    """The weighting itself; raises `ValueError` unless it is one."""
    if isinstance(value, str):
        if value not in ("uniform", "last") and not _CUTOFF.fullmatch(value):
            raise ValueError(
                f"weighting '{value}' is none of uniform, last, cutoff=N, or a list of weights"
            )
    elif not value or min(value) < 0 or sum(value) <= 0:
        raise ValueError("a weighting list needs non-negative weights with a positive sum")
    return value


def term_weights(weighting: Weighting, count: int) -> tuple[float, ...]:
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


def own_site(weighting: Weighting, count: int) -> tuple[float, ...]:
    """The stitch's own term alone, whatever the weighting."""
    return (1.0,) + (0.0,) * (count - 1)
