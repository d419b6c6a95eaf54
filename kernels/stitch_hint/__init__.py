"""`stitch_hint`."""

from ..nouns import stitch_hint

__all__ = ["stitch_hint"]
