"""What timm and torchvision say of the images that their pretrained models take."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any

from ..errors import FulaError


def library_input(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`size`, `resize`, `interpolation`, `mean` and `std` of `timm:NAME` with `pretrained`, or of
    `torchvision:NAME` with `weights` or `pretrained`, from the library's own configuration; else
    nothing.

    Raises `FulaError` for an interpolation that there is not here.
    """
    library, _, kind = model.partition(":")
    if library == "timm" and options.get("pretrained"):
        found = _timm(kind)
    elif library == "torchvision" and (options.get("weights") or options.get("pretrained")):
        found = _torchvision(kind, options.get("weights") or "IMAGENET1K_V1")
    else:
        return {}
    if found["interpolation"] not in ("bilinear", "bicubic"):
        raise FulaError(
            f"'{model}' was trained on images resized by '{found['interpolation']}'; say which to "
            "take instead: input = { interpolation = 'bicubic' }"
        )
    return found


def _timm(kind: str) -> dict[str, Any]:
    from timm.data.config import resolve_data_config
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(kind)
    said = resolve_data_config(pretrained_cfg=known.to_dict() if known else {})
    size = said["input_size"][-1]
    return {
        "size": size,
        "resize": floor(size / said["crop_pct"]),
        "interpolation": said["interpolation"],
        "mean": tuple(said["mean"]),
        "std": tuple(said["std"]),
    }


def _torchvision(kind: str, weights: Any) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    given = get_model_weights(kind)[weights] if isinstance(weights, str) else weights
    said = given.transforms()
    return {
        "size": said.crop_size[0],
        "resize": said.resize_size[0],
        "interpolation": said.interpolation.value,
        "mean": tuple(said.mean),
        "std": tuple(said.std),
    }
