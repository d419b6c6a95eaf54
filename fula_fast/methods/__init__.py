"""The methods that find a stitch, a record each, and what they minimise.

Needs no torch but in `objectives`. Add a method with `fula_fast.methods.register(Method(...))`.
"""

from .dm import DM
from .fula import FULA, with_soft_term
from .hint import HINT
from .registry import Mark, Method, method, methods, objective, register, trained
from .slm import SLM
from .staging import TrainingStage
from .tlm import TLM

METHODS = tuple(register(each).name for each in (DM, HINT, SLM, TLM, FULA))
"""The five of the papers, in their order: what a grid takes that names none."""

__all__ = [
    "DM", "FULA", "HINT", "METHODS", "SLM", "TLM", "Mark", "Method", "TrainingStage", "method",
    "methods", "objective", "register", "trained", "with_soft_term",
]  # fmt: skip
