"""The ways in which a step can run, by name. No torch."""

from __future__ import annotations

from typing import Literal

ModeName = Literal["eager", "compiled", "captured"]
EAGER: ModeName = "eager"
COMPILED: ModeName = "compiled"
CAPTURED: ModeName = "captured"
MODES = (EAGER, COMPILED, CAPTURED)
