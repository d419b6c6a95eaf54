"""A donor that takes images as they are decoded, and prepares them itself: `with_input`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import FulaError
from ..pipelines.draws.augment import Moments, moments_on, normalised_tensor
from ..pipelines.draws.frame import Frame, Input, Interpolation, Normalisation, framed
from .staged import Staged


class Preparation:
    """Images (B, C, H, W) in [0, 1] to what a network takes; differentiable.

    Computes as streams do, in float32 where the images are in a narrower type.
    """

    def __init__(self, given: Input) -> None:
        self.given = given
        self._moments: dict[torch.device, Moments | None] = {}

    def __call__(self, x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        wide = framed(wide, self.given.frame)
        moments = self._on(x.device)
        wide = normalised_tensor(wide.permute(0, 2, 3, 1), moments).permute(0, 3, 1, 2)
        return wide.to(x.dtype)

    def _on(self, device: torch.device) -> Moments | None:
        """Made once: a captured step may not copy from the host."""
        if device not in self._moments:
            self._moments[device] = moments_on(self.given.normalisation, device)
        return self._moments[device]


def prepared(staged: Staged, given: Input, image_shape: Sequence[int]) -> Staged:
    """The donor for images (C, H, W) of that shape in [0, 1], behind its `given` input.

    It shares its stages with `staged`, which is left as it was. Raises `FulaError` where the
    network takes other shapes than the input gives.
    """
    if staged.preparation is not None:
        raise FulaError(f"model '{staged.name}' has its input already; give the model without it")
    acting = given.of(image_shape)
    shape = acting.shape(image_shape)
    if shape != tuple(staged.input_shape):
        raise FulaError(
            f"model '{staged.name}' takes images {_dims(staged.input_shape)}, but its input gives "
            f"{_dims(shape)} (C×H×W); set size = {staged.input_shape[-1]} in its input"
        )
    if acting == Input():
        return staged
    twin = copy.copy(staged)
    twin._modules = dict(staged._modules)
    twin._shapes = staged.site_shapes
    twin.input_shape, twin.preparation = tuple(image_shape), Preparation(acting)
    return twin


def unprepared(staged: Staged) -> tuple[Staged, Input]:
    """The donor without the input that is in it, and that input: the inverse of `prepared`."""
    own = staged.preparation
    if own is None:
        return staged, Input()
    twin = copy.copy(staged)
    twin._modules = dict(staged._modules)
    twin.input_shape, twin.preparation = own.given.shape(staged.input_shape), None
    return twin, own.given


def with_input(
    model: Staged,
    image_shape: Sequence[int],
    *,
    size: int | None = None,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Staged:
    """The donor `model` as one that takes images (C, H, W) = `image_shape` in [0, 1].

    They are resized (shorter side to `resize`, by default `size`), cut to `size` pixels from the
    middle, and normalised by channel, before the model sees them; both donors of a stitch may have
    an input of their own. `interpolation` is bilinear or bicubic, antialiased. Raises `FulaError`
    where the model takes another size.
    """
    frame = None if size is None else Frame(size, resize or size, interpolation)
    if (mean is None) != (std is None):
        raise FulaError("mean and std are given together, or neither")
    moments = None if mean is None or std is None else Normalisation(tuple(mean), tuple(std))
    if moments and len(moments.mean) != image_shape[0]:
        raise FulaError(
            f"mean has {len(moments.mean)} numbers, but images have {image_shape[0]} channels; "
            "give one number a channel"
        )
    return prepared(model, Input(frame, moments), image_shape)


def _dims(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
