"""fula_fast: a compiled engine for model stitching.

Nothing heavy is imported here: torch, NumPy and pydantic are loaded when work starts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import FulaError

if TYPE_CHECKING:
    from .api import similarity, stitch, sweep
    from .models import stages, with_input
    from .pipelines import Normalisation
    from .results import load

__version__ = "0.1.0"
__all__ = [
    "FulaError",
    "Normalisation",
    "__version__",
    "load",
    "similarity",
    "stages",
    "stitch",
    "sweep",
    "with_input",
]

_LAZY = {
    "Normalisation": "fula_fast.pipelines",
    "load": "fula_fast.results",
    "similarity": "fula_fast.api",
    "stages": "fula_fast.models",
    "stitch": "fula_fast.api",
    "sweep": "fula_fast.api",
    "with_input": "fula_fast.models",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fula_fast' has no attribute '{name}'")
