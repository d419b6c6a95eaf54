"""Heads of donors that are chosen in a spec, `head = "linear-probe"`; without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import FulaError, nearest

LINEAR_PROBE = "linear-probe"
NEIGHBOURS = "knn"
NO_HEAD = "none"


@dataclass(frozen=True)
class HeadChoice:
    """A head as a spec names it. `kind`: `linear-probe`, `knn` or `none`. `neighbours`: of knn."""

    kind: str
    neighbours: int = 0

    @property
    def fitted(self) -> bool:
        """Whether it is fitted to labels, so that there are answers."""
        return self.kind != NO_HEAD

    def __str__(self) -> str:
        return f"{self.kind}={self.neighbours}" if self.neighbours else self.kind


def head_choice(text: str) -> HeadChoice:
    """`linear-probe`, `knn=K` or `none` as it is meant; raises `FulaError` for another text.

    >>> head_choice("knn=20")
    HeadChoice(kind='knn', neighbours=20)
    """
    if text in (LINEAR_PROBE, NO_HEAD):
        return HeadChoice(text)
    kind, _, count = text.partition("=")
    if kind != NEIGHBOURS:
        known = (LINEAR_PROBE, f"{NEIGHBOURS}=20", NO_HEAD)
        raise FulaError(f"unknown head '{text}'{nearest(text, known)}")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", count):
        raise FulaError(f"head '{text}': K of knn=K must be a whole number from 1, as in knn=20")
    return HeadChoice(NEIGHBOURS, int(count))


@dataclass(frozen=True)
class FittedHead:
    """What builds a fitted head again: votes of `neighbours` of `images`, or (0) a linear layer.

    `features`: numbers that it takes. `classes`: those that it answers with.
    """

    features: int
    classes: int
    neighbours: int = 0
    images: int = 0

    @property
    def votes(self) -> bool:
        """Whether neighbours vote, which no gradient follows."""
        return self.neighbours > 0

    @property
    def weights(self) -> int:
        """Numbers that it holds."""
        return self.features * (self.images if self.votes else self.classes)
