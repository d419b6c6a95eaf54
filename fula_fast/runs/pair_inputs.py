"""Where the images of a pair of donors become what each of them takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import FulaError
from ..pipelines import Frame, Input, Normalisation

Moments = tuple[Normalisation | None, Normalisation | None]


@dataclass(frozen=True)
class PairInputs:
    """What batches are made to (`moments` of training and test images, `frame`), and what is left
    for the front and the end to do themselves."""

    moments: Moments
    frame: Frame | None
    front: Input
    end: Input


def pair_inputs(
    inputs: Sequence[Input], published: Sequence[bool], own: Moments, *, plain: bool
) -> PairInputs:
    """Of a front and an end whose `inputs` are those.

    What both take is made once, in the batches; where they differ, or an attack needs `plain`
    pixels in [0, 1], batches are left so, and each donor prepares them itself. `published`: whether
    a donor's normalisation is the data's own; `own`: that of training and test images. Raises
    `FulaError` where these two differ, and a donor would have to know which it sees.
    """
    front, end = inputs
    if front == end and not (plain and front != Input()):
        moments = own if all(published) else (front.normalisation, front.normalisation)
        return PairInputs(moments, front.frame, Input(), Input())
    if any(published) and own[0] != own[1]:
        raise FulaError(
            "training and test images were published with different normalisations, and the donors "
            "take different inputs; give mean and std in [data] or in [donors.NAME.input]"
        )
    return PairInputs((None, None), None, front, end)
