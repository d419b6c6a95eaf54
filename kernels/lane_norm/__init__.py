"""`lane_norm`."""

from ..nouns import lane_norm

__all__ = ["lane_norm"]
