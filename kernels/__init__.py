"""The engine's own operators.

`reference` says what each computes; `nouns` are the public functions, served by the backend that
`backend` chooses.
"""

from .nouns import augment, gram, hint_terms, lane_norm, pgd_step, stitch_hint
from .reference import squared_norm, term

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
