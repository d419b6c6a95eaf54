"""The engine's own operators; see `reference` for what each computes."""

from .reference import (
    augment,
    gram,
    hint_terms,
    lane_norm,
    pgd_step,
    squared_norm,
    stitch_hint,
    term,
)

__all__ = [
    "augment",
    "gram",
    "hint_terms",
    "lane_norm",
    "pgd_step",
    "squared_norm",
    "stitch_hint",
    "term",
]
