"""Crop, flip and conversion of uint8 images to floats: the NumPy reference, and tensors.

Every backend computes, for an output pixel (y, x) of sample i with padding p:

    x' = W - 1 - x if flip[i] else x
    out[i, y, x] = image[i, y + dy[i] - p, x' + dx[i] - p] / 255, or 0 outside the image
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .frame import Normalisation

if TYPE_CHECKING:
    import torch


def crop_flip(
    images: np.ndarray, dy: np.ndarray, dx: np.ndarray, flip: np.ndarray, pad: int
) -> np.ndarray:
    """Reference: uint8 (B, H, W, C) to its zero-padded crops, mirrored where `flip`."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = np.empty_like(images)
    for i in range(len(images)):
        crop = padded[i, dy[i] : dy[i] + height, dx[i] : dx[i] + width]
        out[i] = crop[:, ::-1] if flip[i] else crop
    return out


def to_floats(images: np.ndarray) -> np.ndarray:
    """uint8 of any shape to float32 in [0, 1], correctly rounded."""
    return images.astype(np.float32) / np.float32(255)


def normalised(images: np.ndarray, normalisation: Normalisation | None) -> np.ndarray:
    """float32 (B, H, W, C) normalised per channel."""
    if normalisation is None:
        return images
    mean, std = (np.array(v, dtype=np.float32) for v in (normalisation.mean, normalisation.std))
    return (images - mean) / std


def to_float_tensor(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape to float32 in [0, 1], equal to `to_floats` bit for bit.

    The divisor is a tensor: CUDA turns division by a Python number into a multiplication.
    """
    import torch

    return images.float() / torch.full((), 255.0, device=images.device)


Moments = tuple["torch.Tensor", "torch.Tensor"]


def moments_on(normalisation: Normalisation | None, device: torch.device) -> Moments | None:
    """Means and stds (C,) float32 on `device`, made once: a captured step may not copy
    from host."""
    import torch

    if normalisation is None:
        return None
    return tuple(
        torch.tensor(v, dtype=torch.float32, device=device)
        for v in (normalisation.mean, normalisation.std)
    )


def normalised_tensor(images: torch.Tensor, moments: Moments | None) -> torch.Tensor:
    """float32 (B, H, W, C) normalised per channel, equal to `normalised` bit for bit."""
    return images if moments is None else (images - moments[0]) / moments[1]
