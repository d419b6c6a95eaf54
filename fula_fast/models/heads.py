"""Heads of donors that are chosen in a spec, `head = "linear-probe"`; without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import FulaError, nearest

LINEAR_PROBE = "linear-probe"
NEIGHBOURS = "knn"
NO_HEAD = "none"


@dataclass(frozen=True)
class HeadChoice:
    """A head as a spec names it. `kind`: `linear-probe`, `knn` or `none`. `neighbours`: of knn.
    `images`: at most so many that it is fitted to, as many of each class as goes (0: all)."""

    kind: str
    neighbours: int = 0
    images: int = 0

    @property
    def fitted(self) -> bool:
        """Whether it is fitted to labels, so that there are answers."""
        return self.kind != NO_HEAD

    def __str__(self) -> str:
        name = f"{self.kind}={self.neighbours}" if self.neighbours else self.kind
        return f"{name} of {self.images}" if self.images else name

    def fitted_to(self, images: int) -> int:
        """How many of so many training images it is fitted to."""
        return min(images, self.images or images)


def head_choice(text: str) -> HeadChoice:
    """`linear-probe`, `knn=K` or `none` as it is meant, the first two also as `knn=K of N`; raises
    `FulaError` for another text.

    >>> head_choice("knn=20 of 50000")
    HeadChoice(kind='knn', neighbours=20, images=50000)
    """
    named, of, images = text.partition(" of ")
    count = _number(text, "N of a head 'of N'", "knn=20 of 50000", images) if of else 0
    if named == LINEAR_PROBE or text == NO_HEAD:
        return HeadChoice(named, images=count)
    kind, _, neighbours = named.partition("=")
    if kind != NEIGHBOURS:
        known = (LINEAR_PROBE, f"{NEIGHBOURS}=20", NO_HEAD)
        raise FulaError(f"unknown head '{text}'{nearest(text, known)}")
    return HeadChoice(NEIGHBOURS, _number(text, "K of knn=K", "knn=20", neighbours), count)


def _number(text: str, what: str, example: str, given: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", given):
        raise FulaError(f"head '{text}': {what} must be a whole number from 1, as in {example}")
    return int(given)


def fitting_bytes(choice: HeadChoice, features: int, images: int) -> int:
    """Bytes that fitting a head takes: the float32 features of its images, which a head of votes
    keeps and reads from its file once more."""
    held = 2 if choice.neighbours else 1
    return 4 * held * features * choice.fitted_to(images)


def check_room(choice: HeadChoice, features: int, images: int, room: int) -> None:
    """Raise `FulaError` where fitting a head takes more than `room` bytes."""
    needed = fitting_bytes(choice, features, images)
    if needed <= room:
        return
    fewer = replace(choice, images=max(choice.fitted_to(images) * room // needed, 1))
    raise FulaError(
        f"head = '{choice}' holds {features} features of {choice.fitted_to(images):,} images, "
        f"{needed / 2**30:.3g} GiB, but {room / 2**30:.3g} GiB may be taken; fit it to fewer, as "
        f"many of each class as goes: head = '{fewer}', or give it more memory (--memory)"
    )


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
