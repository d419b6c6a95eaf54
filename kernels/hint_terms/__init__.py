"""`hint_terms`."""

from ..nouns import hint_terms

__all__ = ["hint_terms"]
