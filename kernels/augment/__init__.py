"""`augment`."""

from ..nouns import augment

__all__ = ["augment"]
