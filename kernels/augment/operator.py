"""`torch.ops.fula.augment` and its fake."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import custom_op

from ..shared.backend import implementation
from ..shared.operators import schema
from .arguments import NOUN, AugmentArguments


@custom_op("fula::augment", mutates_args=(), schema=schema("Tensor", AugmentArguments))
def augment(*flat: Any) -> Tensor:
    """(B, C, H, W) of `dtype`, channels-last."""
    *fields, backend = flat
    return implementation(NOUN, backend).forward(AugmentArguments(*fields))


@augment.register_fake
def _(*flat: Any) -> Tensor:
    a = AugmentArguments(*flat[:-1])
    _, height, width, channels = a.images.shape
    out = a.images.new_empty(a.index.shape[0], height, width, channels, dtype=a.dtype)
    return out.permute(0, 3, 1, 2)
