"""How an activation becomes a matrix with one row per sample, or per position of a sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import FulaError
from .registry import MAP_FEATURES, TOKEN_FEATURES, Features


def as_matrix(x: Tensor, features: str, size: tuple[int, int] | None = None) -> Tensor:
    """Rows of an activation; vectors (N, C) stay as they are.

    Maps (N, C, H, W): `mean` over positions (N, C), `flat` (N, C*H*W), `positions` (N*H*W, C),
    first resized to `size` as a stitch resizes: bilinear, align_corners False. Tokens (N, T, D):
    `cls` the first token (N, D), `mean` over tokens (N, D), `all` (N*T, D), sample by sample.
    Raises `FulaError` for other shapes and for features that the kind of site does not have.
    """
    if x.dim() == 2:
        return x
    if x.dim() not in (3, 4):
        raise FulaError(
            f"activations of shape {tuple(x.shape)} are neither maps nor tokens nor vectors"
        )
    valid = MAP_FEATURES if x.dim() == 4 else TOKEN_FEATURES
    if features not in valid:
        kind = "maps" if x.dim() == 4 else "tokens"
        raise FulaError(f"features {features!r} of {kind} must be one of {', '.join(valid)}")
    if x.dim() == 3:
        return _of_tokens(x, features)
    if features == Features.POSITIONS:
        return _positions(x, size)
    return x.mean((2, 3)) if features == Features.MEAN else x.flatten(1)


def rows_per_sample(x: Tensor, features: str, size: tuple[int, int] | None = None) -> int:
    """How many rows `as_matrix` makes of one sample of x (N, ...)."""
    if x.dim() == 4 and features == Features.POSITIONS:
        height, width = size or x.shape[-2:]
        return height * width
    return x.shape[1] if x.dim() == 3 and features == Features.ALL else 1


def _of_tokens(x: Tensor, features: str) -> Tensor:
    if features == Features.CLS:
        return x[:, 0]
    return x.mean(1) if features == Features.MEAN else x.flatten(0, 1)


def _positions(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is not None and tuple(x.shape[-2:]) != tuple(size):
        x = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1).flatten(0, 2)
