"""The wave engine: a whole grid of stitches as one program, each lane equal to its cell alone."""

from .run import run_wave

__all__ = ["run_wave"]
