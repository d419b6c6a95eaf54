"""How images reach one network: resized, cut, normalised. Two networks may differ in it.

Images are decoded, cropped, flipped and marked once; what follows is a function of them alone, and
differentiable, so that both networks see the same view and an attack's gradient reaches its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...errors import FulaError

if TYPE_CHECKING:
    import torch

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Normalisation:
    """Per-channel (value - mean) / std, on values in [0, 1], after any marker."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise FulaError(
                f"normalisation mean {self.mean}, std {self.std}: give as many means as stds, "
                "stds above 0"
            )


@dataclass(frozen=True)
class Frame:
    """Images (C, H, W) resized so that their shorter side has `resize` pixels, then cut to the
    square of `size` pixels in their middle; `resize` None: squeezed to that square whole.

    Interpolation is antialiased, as that of Pillow, and keeps to [0, 1].
    """

    size: int
    resize: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < self.size:
            raise FulaError(
                f"resize = {self.resize} is less than size = {self.size}, which is cut out of it; "
                "give resize at least size"
            )

    def __str__(self) -> str:
        """In words, for a report."""
        whole = self.resize in (None, self.size)
        cut = "" if whole else f" from the middle of {self.resize}"
        return f"{self.size} pixels{cut}, {self.interpolation}"

    def shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, H, W) of what becomes of images of that shape."""
        return image_shape[0], self.size, self.size

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Sides of an image before it is cut."""
        if self.resize is None:
            return self.size, self.size
        short = min(height, width)
        return self.resize * height // short, self.resize * width // short

    def acts(self, image_shape: Sequence[int]) -> bool:
        """Whether it changes images (C, H, W) of that shape."""
        height, width = image_shape[1:]
        return not (self.resized(height, width) == (height, width) == (self.size, self.size))


@dataclass(frozen=True)
class Input:
    """What a network takes: images in [0, 1], framed, then normalised; None leaves them."""

    frame: Frame | None = None
    normalisation: Normalisation | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Input:
        """The inverse of `dataclasses.asdict`, lists in the place of tuples."""
        frame, moments = values.get("frame"), values.get("normalisation")
        return cls(
            frame and Frame(**frame),
            moments and Normalisation(tuple(moments["mean"]), tuple(moments["std"])),
        )

    def __str__(self) -> str:
        """In words, for a report."""
        moments = self.normalisation
        parts = [str(self.frame or "size as it is")]
        parts += [f"mean {list(moments.mean)}, std {list(moments.std)}"] if moments else []
        return "; ".join(parts)

    def shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, H, W) of what becomes of images of that shape."""
        return self.frame.shape(image_shape) if self.frame else tuple(image_shape)

    def of(self, image_shape: Sequence[int]) -> Input:
        """What acts of it on images (C, H, W) of that shape: equal ones compute the same."""
        frame, moments = self.frame, self.normalisation
        if frame is not None and not frame.acts(image_shape):
            frame = None
        if moments is not None and not any(moments.mean) and set(moments.std) == {1.0}:
            moments = None
        return Input(frame, moments)


def framed(images: torch.Tensor, frame: Frame | None) -> torch.Tensor:
    """Float images (B, C, H, W) in [0, 1] to (B, C, size, size)."""
    from torch.nn.functional import interpolate

    if frame is None:
        return images
    sides, given = frame.resized(*images.shape[2:]), tuple(images.shape[2:])
    if sides != given:
        images = interpolate(images, sides, mode=frame.interpolation, antialias=True)
        if frame.interpolation == "bicubic":  # which overshoots at edges
            images = images.clamp(0, 1)
    top, left = (round((side - frame.size) / 2) for side in sides)
    return images[:, :, top : top + frame.size, left : left + frame.size]
