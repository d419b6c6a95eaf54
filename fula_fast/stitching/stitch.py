"""The stitch: a small affine map from a front's site to an end's site.

Sites have one of three forms, told apart by their shape without the batch axis: `conv` (C, H, W),
`token` (N, C), `vector` (C,). Between like forms the map acts on the feature axis alone (a biased
1x1 convolution, or a linear layer); between unlike forms, or different token counts, a linear map
over positions follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FulaError
from .bilinear import Bilinear

Shape = tuple[int, ...]
Kind = Literal["conv", "token", "vector"]
_KINDS: dict[int, Kind] = {3: "conv", 2: "token", 1: "vector"}


def kind(shape: Shape) -> Kind:
    """`conv`, `token` or `vector`, by the number of axes of a site's shape (no batch axis).

    Raises `FulaError` for another number of axes.
    """
    if len(shape) not in _KINDS:
        raise FulaError(
            f"a site of shape {tuple(shape)} is none of (C, H, W), (N, C), (C,); "
            "cut the model where one such tensor flows"
        )
    return _KINDS[len(shape)]


def features(shape: Shape) -> int:
    """Size of the feature axis."""
    return shape[1] if kind(shape) == "token" else shape[0]


def positions(shape: Shape) -> int:
    """Number of positions that share one feature map: H*W, N, or 1."""
    return {"conv": lambda: shape[1] * shape[2], "token": lambda: shape[0], "vector": lambda: 1}[
        kind(shape)
    ]()


def to_rows(x: Tensor) -> Tensor:
    """(B, C, H, W), (B, N, C) or (B, C) to (B, positions, features)."""
    if x.dim() == 4:
        return x.flatten(2).transpose(1, 2)
    return x if x.dim() == 3 else x[:, None]


def from_rows(rows: Tensor, shape: Shape) -> Tensor:
    """Inverse of `to_rows`: (B, positions, features) to a batch of `shape`."""
    if kind(shape) == "conv":
        return rows.transpose(1, 2).unflatten(2, shape[1:])
    return rows if kind(shape) == "token" else rows[:, 0]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (B, C, H, W) to `size` (align_corners False, no antialias)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if x.device.type != "cpu":
        return Bilinear.apply(x, tuple(size))
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Geometry:
    """What a stitch between two site shapes consists of (no batch axis in `source`, `target`)."""

    source: Shape
    target: Shape

    @property
    def like(self) -> bool:
        """Both sites have the same form, so that the closed form (DM) is defined."""
        return kind(self.source) == kind(self.target) and not self.maps_positions

    @property
    def maps_positions(self) -> bool:
        """A linear map over positions follows the one over features."""
        both_conv = kind(self.source) == kind(self.target) == "conv"
        return not both_conv and (
            kind(self.source) != kind(self.target)
            or positions(self.source) != positions(self.target)
        )

    @property
    def resizes(self) -> bool:
        """Conv to conv at different resolutions."""
        return (
            kind(self.source) == kind(self.target) == "conv" and self.source[1:] != self.target[1:]
        )

    @property
    def shrinks(self) -> bool:
        """The end's map is smaller: resize first, then multiply, at the smaller resolution."""
        return self.resizes and positions(self.target) < positions(self.source)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(features out, features in)."""
        return features(self.target), features(self.source)

    @property
    def position_shape(self) -> tuple[int, int]:
        """(positions out, positions in)."""
        return positions(self.target), positions(self.source)


class FeatureNorm(nn.BatchNorm1d):
    """Batch norm over the feature axis of any site form: (B, C), (B, C, H, W), (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:  # tokens carry features last
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        return super().forward(x.flatten(2)).view_as(x) if x.dim() == 4 else super().forward(x)

    def _check_input_dim(self, x: Tensor) -> None:
        """Every form is flattened before it comes here."""


class Stitch(nn.Module):
    """The trained affine map T of h = end_tail . T . front (FuLA preprint, section 2.1).

    Y = resize(W X + b) for conv sites; Y = X Wt + b for token and vector sites; between unlike
    forms a linear map over positions follows. With `batchnorm` a batch norm stands on either side
    of the map (Smith et al. 2025). Multiplies at the smaller resolution: resize and a biased 1x1
    convolution commute.

    Args: `source`, `target`: site shapes without the batch axis. `batchnorm`: put batch norms
    around the map. `bias`: of the feature map.
    """

    def __init__(
        self, source: Shape, target: Shape, *, batchnorm: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.geometry = Geometry(tuple(source), tuple(target))
        out, inner = self.geometry.weight_shape
        self.weight = nn.Parameter(torch.zeros(out, inner))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.position_weight = self.position_bias = None
        if self.geometry.maps_positions:
            self.position_weight = nn.Parameter(torch.zeros(self.geometry.position_shape))
            self.position_bias = nn.Parameter(torch.zeros(positions(target)))
        self.norm_in = FeatureNorm(inner) if batchnorm else None
        self.norm_out = FeatureNorm(out) if batchnorm else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, *source) to (B, *target)."""
        size = self.geometry.target[1:] if self.geometry.resizes else None
        first = size is not None and (self.geometry.shrinks or self.norm_in is not None)
        if size is not None and first:
            x = resize(x, size)
        if self.norm_in is not None:
            x = self.norm_in(x)
        x = self._product(x)
        if self.norm_out is not None:
            x = self.norm_out(x)
        return x if first or size is None else resize(x, size)

    def _product(self, x: Tensor) -> Tensor:
        """In the dtype of `x`, which may be narrower than the trained numbers."""
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if self.position_weight is not None:
            rows = F.linear(to_rows(x), weight, bias)
            places = self.position_weight.to(x.dtype), self.position_bias.to(x.dtype)
            mapped = F.linear(rows.transpose(1, 2), *places)
            return from_rows(mapped.transpose(1, 2), self.geometry.target)
        if x.dim() == 4:
            return F.conv2d(x, weight[:, :, None, None], bias)
        return F.linear(x, weight, bias)

    @torch.no_grad()
    def initialise(self, how: Literal["identity", "random"], seed: int) -> Stitch:
        """Fill the maps: `identity` (zero bias), or U(-1/sqrt(fan_in), 1/sqrt(fan_in)) by `seed`.

        Random values are NumPy's Philox keyed by the seed alone, so that they depend on neither
        device nor grouping. Raises `FulaError` for `identity` between unlike forms.
        """
        if how == "identity" and not self.geometry.like:
            raise FulaError(
                f"init = 'identity' needs sites of one form, not {self.geometry.source} and "
                f"{self.geometry.target}; use 'random'"
            )
        if how == "identity":
            self.weight.copy_(torch.eye(*self.weight.shape))
            return self
        rng = np.random.Generator(np.random.Philox(key=seed))
        _uniform(rng, self.weight, self.bias)
        if self.position_weight is not None:
            _uniform(rng, self.position_weight, self.position_bias)
        return self

    @torch.no_grad()
    def assign(self, weight: np.ndarray | Tensor, bias: np.ndarray | Tensor | None) -> Stitch:
        """Copy a given map: weight (out, in), bias (out,)."""
        self.weight.copy_(torch.as_tensor(weight))
        if bias is not None and self.bias is not None:
            self.bias.copy_(torch.as_tensor(bias))
        return self


def _uniform(rng: np.random.Generator, weight: Tensor, bias: Tensor | None) -> None:
    bound = weight.shape[1] ** -0.5
    for tensor in (weight, bias):
        if tensor is not None:
            tensor.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(tensor.shape))))
