"""Donors that know nothing: no better on the test images than one answer for all of them."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FulaWarning

if TYPE_CHECKING:
    from ..pipelines import ImageSet

_SPREADS = 3


class ChanceWarning(FulaWarning):
    """A donor that is not better than chance: agreement with it says nothing of knowledge."""


def chance_level(images: ImageSet) -> float:
    """The accuracy up to which a model may be guessing: the share of the commonest class, and three
    standard errors of a share of so many images."""
    counts = np.bincount(images.labels, minlength=images.num_classes)
    share, count = float(counts.max()) / len(images), len(images)
    return share + _SPREADS * math.sqrt(share * (1 - share) / count)


def warn_near_chance(role: str, accuracy: float, images: ImageSet) -> None:
    """Warn (`ChanceWarning`) where `accuracy` on these test images is not above `chance_level`."""
    level = chance_level(images)
    if accuracy <= level:
        warnings.warn(
            f"{role} is right on {accuracy:.1%} of {len(images)} test images, where guessing gets "
            f"up to {level:.1%}: agreement with it says nothing of what networks know; train it, "
            "or look at its data, its normalisation and the order of its labels",
            ChanceWarning,
            stacklevel=3,
        )
