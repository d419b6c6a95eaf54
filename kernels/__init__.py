"""The engine's own operators.

`reference` says what each computes; `nouns` are the public functions, served by the backend that
`shared.backend` chooses.
"""

from .augment import augment
from .gram import gram
from .hint_terms import hint_terms
from .lane_norm import lane_norm
from .pgd_step import pgd_step
from .reference import squared_norm, term
from .shared import backend
from .stitch_hint import stitch_hint

__all__ = [
    "augment",
    "backend",
    "gram",
    "hint_terms",
    "lane_norm",
    "pgd_step",
    "squared_norm",
    "stitch_hint",
    "term",
]
