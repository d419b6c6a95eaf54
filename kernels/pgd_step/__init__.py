"""`pgd_step`."""

from ..nouns import pgd_step

__all__ = ["pgd_step"]
