"""Stitches of several lanes applied image by image: which lane's is a number on the device.

`Stitch` serves one lane and `Group` lanes with a batch each. Here every image of a batch names its
lane, so that a recorded step serves whatever images are in flight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import not_none
from ..stitching.stitch import FeatureNorm, Stitch, from_rows, resize, to_rows


class RowStitch:
    """Frozen stitches between the same two sites, in eval mode; `parts` of a tensor
    each, by lane."""

    def __init__(self, stitches: Sequence[Stitch], dtype: torch.dtype) -> None:
        first = stitches[0]
        self.geometry = first.geometry
        self._first = self.geometry.shrinks or first.norm_in is not None
        self._maps = {
            name: torch.stack([getattr(s, name).detach() for s in stitches]).to(dtype)
            for name in ("weight", "bias", "position_weight", "position_bias")
            if getattr(first, name) is not None
        }
        self._norms = {
            name: tuple(
                torch.stack(parts).to(dtype)
                for parts in zip(*(_scale_shift(getattr(s, name)) for s in stitches), strict=True)
            )
            for name in ("norm_in", "norm_out")
            if getattr(first, name) is not None
        }

    def __call__(self, x: Tensor, place: Tensor) -> Tensor:
        """Front activations (N, *source) to (N, *target), image i by stitch place[i]; no gradient
        but to x."""
        size = self.geometry.target[1:] if self.geometry.resizes else None
        if size is not None and self._first:
            x = resize(x, size)
        rows = self._normed("norm_in", to_rows(x), place)  # (N, positions, features)
        rows = self._mapped(rows, place)
        rows = self._normed("norm_out", rows, place)
        y = from_rows(rows, self._shape(x))
        return y if size is None or self._first else resize(y, size)

    def _mapped(self, rows: Tensor, place: Tensor) -> Tensor:
        own = {name: stack[place] for name, stack in self._maps.items()}
        weight = own["weight"].transpose(1, 2)
        rows = torch.baddbmm(own["bias"][:, None], rows, weight) if "bias" in own else rows @ weight
        if "position_weight" in own:
            rows = torch.baddbmm(own["position_bias"][:, :, None], own["position_weight"], rows)
        return rows

    def _normed(self, name: str, rows: Tensor, place: Tensor) -> Tensor:
        if name not in self._norms:
            return rows
        scale, shift = (part[place][:, None] for part in self._norms[name])
        return torch.addcmul(shift, rows, scale)

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Of an image behind the maps: the target's, but for the resolution where that
        comes last."""
        target = self.geometry.target
        return (target[0], *x.shape[2:]) if self.geometry.resizes else target


def _scale_shift(norm: FeatureNorm) -> tuple[Tensor, Tensor]:
    """Eval-mode batch norm as a scale and a shift, (features,) each."""
    scale = norm.weight.detach() * (not_none(norm.running_var) + norm.eps).rsqrt()
    return scale, norm.bias.detach() - not_none(norm.running_mean) * scale
