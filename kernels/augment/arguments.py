"""What `augment` is called with, and what it cannot mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..shared import checks

NOUN = "augment"


class AugmentArguments(NamedTuple):
    """The arguments of `augment`, in the order of its operator.

    images: uint8 (N, H, W, C); index: (B,); dy, dx, flip, marker_index, marker_y, marker_x: (N,);
    markers: float32 (M, h, w, C).
    """

    images: Tensor
    index: Tensor
    dy: Tensor
    dx: Tensor
    flip: Tensor
    pad: int
    markers: Tensor | None
    marker_index: Tensor | None
    marker_y: Tensor | None
    marker_x: Tensor | None
    dtype: torch.dtype


def checked(a: AugmentArguments) -> AugmentArguments:
    """`a`, without what belongs to markers where there are none.

    Raises `FulaError` for what does not fit together. Values of `index` and the draws are the
    caller's care: they live on the device.
    """
    if a.markers is None:
        a = a._replace(marker_index=None, marker_y=None, marker_x=None)
    draws = {"dy": a.dy, "dx": a.dx}
    if a.markers is not None:
        draws |= {"marker_index": a.marker_index, "marker_y": a.marker_y, "marker_x": a.marker_x}
    _kinds(a, draws)
    for name, tensor in {"index": a.index, "flip": a.flip, **draws}.items():
        if tensor.device != a.images.device:
            rule = f"must be that of images, {a.images.device}"
            checks.fail(NOUN, f"{name}.device", tensor.device, rule)
    _by_sample(a, draws)
    if a.pad < 0:
        checks.fail(NOUN, "pad", a.pad, "must be at least 0")
    if a.dtype not in checks.FLOATS:
        checks.fail(NOUN, "dtype", a.dtype, "must be a float")
    if a.markers is not None:
        _markers(a.markers, a.images)
    return a


def _kinds(a: AugmentArguments, draws: dict[str, Tensor | None]) -> None:
    checks.tensors(NOUN, {"images": a.images} | checks.present(markers=a.markers))
    for name, tensor in draws.items():
        if tensor is None and name.startswith("marker"):
            checks.fail(NOUN, name, None, "must be given with markers")
    checks.tensors(NOUN, {"index": a.index, "flip": a.flip, **draws})
    checks.integer(NOUN, "pad", a.pad)
    if a.images.dtype != torch.uint8 or a.images.dim() != 4:
        rule = "must be uint8 (N, H, W, C)"
        checks.fail(NOUN, "images", f"{a.images.dtype} {tuple(a.images.shape)}", rule)
    if a.index.dtype not in checks.INTEGERS or a.index.dim() != 1:
        rule = "must be int32 or int64 (B,)"
        checks.fail(NOUN, "index", f"{a.index.dtype} {tuple(a.index.shape)}", rule)


def _by_sample(a: AugmentArguments, draws: dict[str, Tensor]) -> None:
    for name, tensor in {"flip": a.flip, **draws}.items():
        checks.shape(NOUN, name, tensor, (len(a.images),), meaning="(N,), one a sample")
        if name != "flip" and tensor.dtype not in checks.INTEGERS:
            checks.fail(NOUN, f"{name}.dtype", tensor.dtype, "must be int32 or int64")
    if a.flip.dtype != torch.bool:
        checks.fail(NOUN, "flip.dtype", a.flip.dtype, "must be bool")


def _markers(markers: Tensor, images: Tensor) -> None:
    _, height, width, channels = images.shape
    if markers.dtype != torch.float32 or markers.device != images.device:
        rule = f"must be float32 on {images.device}"
        checks.fail(NOUN, "markers", f"{markers.dtype} on {markers.device}", rule)
    fits = markers.dim() == 4 and markers.shape[3] == channels
    if not fits or markers.shape[1] > height or markers.shape[2] > width:
        rule = f"must be (M, h, w, {channels}) with h <= {height}, w <= {width}"
        checks.fail(NOUN, "markers.shape", tuple(markers.shape), rule)
