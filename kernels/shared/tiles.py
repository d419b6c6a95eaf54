"""Tile sizes: shipped defaults, replaced per device by what `tune` measured and cached on disk.

`choose` only looks up, so nothing is measured inside a launch or a capture. The cache is one JSON
file per device under $FULA_CACHE (default ~/.cache/fula-fast); delete it to forget.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from ...files.paths import cache_folder
from .device import power_of_two


@dataclass(frozen=True)
class Tile:
    """ROWS x COLS of output per program, warps and pipeline stages.

    `inner`: of a product, how much of its summed axis a step takes; of a kernel that sums over
    rows, how many tiles of rows one program takes.
    """

    rows: int
    cols: int
    inner: int = 0
    warps: int = 4
    stages: int = 3


PRODUCTS = (
    "stitch", "fused_gradient", "weight_gradient", "input_gradient",
    "lane_conv", "lane_conv_gradient",
)  # fmt: skip
"""Kernels that are matrix products; all others stream memory."""

DEFAULTS: dict[str, Tile] = {
    "stats": Tile(64, 64, 16),
    "normalise": Tile(64, 64),
    "sums": Tile(32, 64, 32),
    "joined_sums": Tile(16, 64, 64),
    "norm_gradient": Tile(32, 64),
    "stitch": Tile(128, 128, 64, warps=8),
    "fused_gradient": Tile(128, 64, 128, warps=8, stages=2),
    "weight_gradient": Tile(64, 128, 128, warps=8),
    "input_gradient": Tile(128, 128, 64, warps=8),
    "lane_conv": Tile(128, 128, 64, warps=8),
    "lane_conv_gradient": Tile(128, 128, 64, warps=8),
}
OVERRIDES: dict[tuple[str, torch.dtype], Tile] = {
    ("stitch", torch.float32): Tile(128, 64, 32, warps=8),
    ("fused_gradient", torch.float32): Tile(32, 32, 64, stages=2),
    ("weight_gradient", torch.float32): Tile(32, 64, 64),
    ("input_gradient", torch.float32): Tile(128, 64, 32, warps=8),
    ("lane_conv", torch.float32): Tile(64, 64, 32),
    ("lane_conv_gradient", torch.float32): Tile(64, 64, 32),
    ("fused_gradient", torch.float16): Tile(32, 64, 128, stages=2),
    ("weight_gradient", torch.float16): Tile(32, 128, 128, warps=8),
    ("input_gradient", torch.float16): Tile(128, 128, 32, warps=8),
}
"""float32 products take three TF32 passes, and gradients of float16 meet it in float32: both need
more registers, so smaller tiles."""

SCATTERED: dict[str, Tile] = {
    "stats": Tile(16, 32, 64),
    "normalise": Tile(16, 32),
    "sums": Tile(16, 32, 64),
    "joined_sums": Tile(16, 32, 64),
    "norm_gradient": Tile(16, 32),
    "stitch": Tile(32, 32, 32),
    "fused_gradient": Tile(32, 32, 64, stages=2),
    "weight_gradient": Tile(32, 32, 16),
    "input_gradient": Tile(32, 32, 32),
}
"""For tensors whose rows do not lie at equal distances, as in contiguous (N, C, H, W): every
element has an address of its own to hold."""

_CANDIDATES: dict[str, tuple[Tile, ...]] = {
    "stats": tuple(Tile(r, 64, 1024 // r, w) for r in (32, 64, 128) for w in (4, 8)),
    "normalise": tuple(Tile(r, 64, warps=w) for r in (16, 32, 64, 128) for w in (4, 8)),
    "sums": tuple(Tile(r, 64, 1024 // r, w) for r in (16, 32, 64) for w in (4, 8)),
    "joined_sums": tuple(Tile(r, 64, 1024 // r, w) for r in (16, 32) for w in (4, 8)),
    "norm_gradient": tuple(Tile(r, 64, warps=w) for r in (16, 32, 64) for w in (4, 8)),
    "stitch": tuple(
        Tile(r, c, k, w, s)
        for r, c, w in ((128, 128, 8), (128, 64, 4), (64, 128, 4), (128, 256, 8))
        for k in (32, 64)
        for s in (2, 3, 4)
    ),
    "fused_gradient": tuple(
        Tile(r, c, 128, w, s)
        for r in (32, 64, 128)
        for c in (64, 128)
        for w in (4, 8)
        for s in (2, 3)
    ),
    "weight_gradient": tuple(
        Tile(r, c, k, w, s)
        for r in (32, 64)
        for c, k, w in ((128, 128, 8), (64, 128, 4), (64, 64, 4))
        for s in (2, 3, 4)
    ),
    "input_gradient": tuple(
        Tile(r, c, k, w, s)
        for r, c, w in ((128, 128, 8), (128, 64, 4), (64, 128, 4))
        for k in (32, 64)
        for s in (2, 3, 4)
    ),
    **{
        name: tuple(
            Tile(r, c, k, w, s)
            for r, c, w in ((128, 128, 8), (128, 64, 4), (256, 64, 8), (128, 256, 8))
            for k in (32, 64)
            for s in (2, 3, 4)
        )
        for name in ("lane_conv", "lane_conv_gradient")
    },
}
_forced: dict[str, Tile] = {}


def choose(
    kernel: str, x: torch.Tensor, channels: int, inner: int = 0, *, flat: bool = True
) -> Tile:
    """The tile of `kernel` for tensors like `x` (N, channels, ...), `inner` summed values.

    flat: rows lie at equal distances.
    """
    tile = _forced.get(kernel)
    if tile is None:
        tuned = _tuned(_device(x)).get(_key(kernel, x.dtype, channels, inner)) if flat else None
        tile = _fitted(kernel, tuned or default(kernel, x.dtype, flat), channels, inner)
    return tile


def default(kernel: str, dtype: torch.dtype, flat: bool = True) -> Tile:
    """The shipped tile."""
    if not flat:
        return SCATTERED[kernel]
    return OVERRIDES.get((kernel, dtype), DEFAULTS[kernel])


def _fitted(kernel: str, tile: Tile, channels: int, inner: int) -> Tile:
    """`tile` shrunk to the problem: no wider than its channels, no deeper than its inner axis."""
    least = 16 if kernel in PRODUCTS else 1
    cols = max(power_of_two(channels, tile.cols), least)
    if kernel not in PRODUCTS:
        return Tile(tile.rows * tile.cols // cols, cols, tile.inner, tile.warps, tile.stages)
    depth = max(power_of_two(inner, tile.inner), 16)
    return Tile(tile.rows, cols, depth, tile.warps, tile.stages)


def _key(kernel: str, dtype: torch.dtype, channels: int, inner: int) -> str:
    sizes = "x".join(str(power_of_two(n, 1 << 20)) for n in (channels, inner))
    return f"{kernel}/{str(dtype).removeprefix('torch.')}/{sizes}"


def _device(x: torch.Tensor) -> str:
    return torch.cuda.get_device_name(x.device) if x.is_cuda else "interpreter"


def _path(device: str) -> Path:
    return cache_folder() / f"tiles-{device.replace(' ', '-').replace('/', '-')}.json"


@cache
def _tuned(device: str) -> dict[str, Tile]:
    path = _path(device)
    if not path.exists():
        return {}
    return {key: Tile(**values) for key, values in json.loads(path.read_text()).items()}


@contextmanager
def forced(**tiles: Tile) -> Iterator[None]:
    """Use exactly these tiles inside the block: for tests, and for `tune`'s trials."""
    previous = dict(_forced)
    _forced.update(tiles)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(previous)


def tune(
    kernel: str,
    launch: Callable[[], object],
    measure: Callable[[Callable[[], object]], float],
    x: torch.Tensor,
    channels: int,
    inner: int = 0,
) -> Tile:
    """Measure `launch` under every candidate tile of `kernel`, keep the fastest in the cache.

    x: (N, channels, ...). `measure` returns the seconds of a callable. Tiles that the device cannot
    hold are passed over.
    """
    from triton.runtime.errors import OutOfResources

    times: dict[Tile, float] = {}
    for candidate in _CANDIDATES[kernel]:
        tile = _fitted(kernel, candidate, channels, inner)
        if tile in times:
            continue
        try:
            with forced(**{kernel: tile}):
                times[tile] = measure(launch)
        except OutOfResources:
            continue
    best = min(times, key=times.__getitem__)
    _remember(_device(x), _key(kernel, x.dtype, channels, inner), best)
    return best


def _remember(device: str, key: str, tile: Tile) -> None:
    known = {**_tuned(device), key: tile}
    path = _path(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({k: asdict(t) for k, t in sorted(known.items())}, indent=1))
    scratch.replace(path)
    _tuned.cache_clear()
