"""`gram`."""

from ..nouns import gram

__all__ = ["gram"]
