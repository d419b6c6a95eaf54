"""The engine's own operators.

A folder a noun: the public function, its record of arguments, the reference that says what it
computes, the operator, and the compiled versions behind it. `backend` chooses who serves a call.
"""

from .augment import augment
from .gram import gram
from .hint_terms import hint_terms
from .lane_conv import Affine, Projection, lane_conv, lane_conv_fork, lane_conv_norm
from .lane_norm import lane_norm
from .pgd_step import pgd_step
from .shared import backend
from .shared.distance import squared_norm, term
from .stitch_hint import stitch_hint

__all__ = [
    "Affine",
    "Projection",
    "augment",
    "backend",
    "gram",
    "hint_terms",
    "lane_conv",
    "lane_conv_fork",
    "lane_conv_norm",
    "lane_norm",
    "pgd_step",
    "squared_norm",
    "stitch_hint",
    "term",
]
