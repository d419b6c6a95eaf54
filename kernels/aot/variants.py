"""Which kernels, in which variants, are compiled ahead of time.

Names read noun_step[_options]_dtype_layout; grids are products of the kernel's arguments and
ceil(a, b), with the constants of the variant by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ..augment import triton as augment
from ..hint_terms import triton as hint_terms
from ..lane_norm import device as lane_norm
from ..pgd_step import triton as pgd_step
from ..shared import device as common
from ..shared.tiles import default
from ..stitch_hint import device as stitch_hint
from .compile import Variant

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
LAYOUTS = ("fast", "any")
_POINTERS = {"f32": "*fp32", "bf16": "*bf16", "f16": "*fp16"}
_PRECISION = {"f32": "tf32x3", "bf16": "tf32", "f16": "tf32"}

_COUNTS = [
    "lanes",
    "samples",
    "positions",
    "channels",
    "chunks",
    "tiles",
    "parts",
    "affine_stride",
    "c1",
    "c2",
    "splits",
    "blocks",
    "fronts",
    "span",
    "rows",
    "count",
    "height",
    "width",
    "pad",
    "marker_height",
    "marker_width",
    "pieces",
]
_SCALARS = {"eps": "fp32", "floor": "fp32", "share": "fp32", "step": "fp32", "size": "i64"}
_SUMS = ["weight", "bias", "mean", "var", "partial", "grad_dist2", "sums", "dw", "db", "markers"]
_ACTIVATIONS = [
    "x",
    "residual",
    "target",
    "y",
    "grad_y",
    "d_in",
    "d_out",
    "dx",
    "e",
    "grad",
    "clean",
    "out",
]
_STRIDES = ["x", "residual", "target", "y", "grad", "d", "dx", "e"]
_INDICES = ["x_index", "target_index", "order", "starts", "index", "marker_index"]


def _types(dtype: str, layout: str, axes: int) -> dict[str, object]:
    """Types by argument name; `axes` strides a tensor: (sample, position, channel[, front])."""
    channel = 1 if layout == "fast" else "i64"
    strides = ("i64", "i64", channel, "i64")[:axes]
    return {
        **dict.fromkeys(_COUNTS, "i32"),
        **_SCALARS,
        **dict.fromkeys(_SUMS, "*fp32"),
        **dict.fromkeys(_ACTIVATIONS, _POINTERS[dtype]),
        **{f"{name}_strides": strides for name in _STRIDES},
        **dict.fromkeys(_INDICES, "*i64"),
    }


def _variant(
    name: str,
    kernel,
    dtype: str,
    layout: str,
    grid: str,
    constants: Mapping[str, object],
    *,
    axes: int = 3,
    types: Mapping[str, object] | None = None,
    warps: int = 4,
    stages: int = 3,
) -> Variant:
    kinds = {**_types(dtype, layout, axes), **(types or {})}
    aligned: frozenset[str] = frozenset()
    if layout == "fast":
        pointers = [n for n, k in kinds.items() if str(k).lstrip("('").startswith("*")]
        strides = [n for n in kinds if n.endswith("_strides")]
        divisible = ("channels", "c1", "c2", "affine_stride", "size", "sizes")
        aligned = frozenset([*pointers, *strides, *divisible]) - {*_INDICES}
    known = {n: v for n, v in constants.items() if n in kernel.arg_names}
    return Variant(f"{name}_{dtype}_{layout}", kernel, kinds, known, aligned, grid, warps, stages)


def variants() -> Iterator[Variant]:
    """All of them, in a fixed order."""
    yield from _shared()
    for dtype in DTYPES:
        for layout in LAYOUTS:
            yield from _norm(dtype, layout)
            yield from _stitch(dtype, layout)
            yield from _elementwise(dtype, layout)
        yield from _augment(dtype)


def _absent(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def _shared() -> Iterator[Variant]:
    for name, constant in (("columns", "stride_item"), ("rows", "stride_count")):
        other = {"stride_item": "stride_count", "stride_count": "stride_item"}[constant]
        sizes = {"COUNT": 16, "SIZE": 64} if name == "columns" else {"COUNT": 128, "SIZE": 16}
        types = {other: "i64", "out": "*fp32"}
        yield _variant(
            f"sum_partials_{name}", common.sum_partials_kernel, "f32", "any",
            "ceil(size, SIZE)", {constant: 1, **sizes}, types=types,
        )  # fmt: skip
    yield _variant(
        "lane_norm_merge_stats", lane_norm.merge_stats_kernel, "f32", "any",
        "lanes * ceil(channels, COLS)", {"CHUNKS": 128, "COLS": 32},
    )  # fmt: skip


def _norm(dtype: str, layout: str) -> Iterator[Variant]:
    def tile(kernel: str) -> dict[str, object]:
        chosen = default(kernel, DTYPES[dtype], layout == "fast")
        return {"FLAT": layout == "fast", "ROWS": chosen.rows, "COLS": chosen.cols}

    chunked = "lanes * chunks * ceil(channels, COLS)"
    tiled = "lanes * tiles * ceil(channels, COLS)"
    yield _variant("lane_norm_stats", lane_norm.stats_kernel, dtype, layout, chunked, tile("stats"))
    for residual in (True, False) if layout == "fast" else (True,):
        for target in (True, False):
            options = ("_residual" if residual else "") + ("_target" if target else "")
            gone = [] if residual else ["residual"]
            lost = [] if target else ["target"]
            yield _variant(
                f"lane_norm_normalise{options}", lane_norm.normalise_kernel, dtype, layout,
                "lanes * tiles * parts",
                tile("normalise") | _absent(*gone, *lost, *(() if target else ("partial",))),
            )  # fmt: skip
            yield _variant(
                f"lane_norm_sums{options}", lane_norm.sums_kernel, dtype, layout, chunked,
                tile("sums") | _absent(*gone, *lost, *(() if target else ("grad_dist2",))),
            )  # fmt: skip
    yield _variant(
        "lane_norm_input_gradient", lane_norm.input_gradient_kernel, dtype, layout, tiled,
        tile("norm_gradient") | _absent("residual", "target", "grad_y", "grad_dist2", "d_out"),
    )  # fmt: skip


_STITCH_MODES: dict[str, tuple[str, ...]] = {
    "y": ("target", "partial", "grad_y", "grad_dist2"),
    "y_dist": ("grad_y", "grad_dist2"),
    "e": ("partial",),
    "dist": ("y", "grad_y", "grad_dist2"),
    "e_hint": ("partial", "grad_y"),
}
"""What `stitch_kernel` leaves out in each mode; the last two only in the fast layout."""


def _stitch(dtype: str, layout: str) -> Iterator[Variant]:
    fixed = {
        "PRECISION": _PRECISION[dtype], "LANES_INNER": True, "FLAT": layout == "fast",
    }  # fmt: skip
    weights = {"weight": _POINTERS[dtype]}

    def product(name, kernel, tiles, grid, constants, depth="INNER", types=None) -> Variant:
        tile = default(tiles, DTYPES[dtype], layout == "fast")
        sizes = {"ROWS": tile.rows, "COLS": tile.cols, depth: tile.inner}
        return _variant(
            name, kernel, dtype, layout, grid, fixed | sizes | constants, axes=4,
            types=weights | (types or {}), warps=tile.warps, stages=tile.stages,
        )  # fmt: skip

    yield _variant("cast", common.cast_kernel, dtype, layout, "ceil(size, BLOCK)", {"BLOCK": 1024},
                   types={"x": "*fp32", "out": _POINTERS[dtype]})  # fmt: skip
    for mode in list(_STITCH_MODES)[: 5 if layout == "fast" else 3]:
        constants = _absent(*_STITCH_MODES[mode]) | {"GRADIENT": mode.startswith("e")}
        wide = {"y": "*fp32"} if dtype == "f16" and mode.startswith("e") else {}
        yield product(f"stitch_hint_{mode}", stitch_hint.stitch_kernel, "stitch",
                      "lanes * tiles * parts", constants, types=wide)  # fmt: skip
    if layout == "fast":
        for options, gone in (("", ("grad_y",)), ("_dy", ())):
            yield product(
                f"stitch_hint_fused_gradient{options}", stitch_hint.fused_gradient_kernel,
                "fused_gradient", "lanes * splits * parts", _absent(*gone), "DEPTH",
            )  # fmt: skip
    for options, e in (("", _POINTERS[dtype]), *((("_wide", "*fp32"),) if dtype == "f16" else ())):
        yield product(
            f"stitch_hint_weight_gradient{options}", stitch_hint.weight_gradient_kernel,
            "weight_gradient", "lanes * splits * parts", {}, "DEPTH", {"e": e},
        )  # fmt: skip
        yield product(
            f"stitch_hint_input_gradient{options}", stitch_hint.input_gradient_kernel,
            "input_gradient", "fronts * tiles * ceil(c1, COLS)", {}, types={"e": e},
        )  # fmt: skip


def _elementwise(dtype: str, layout: str) -> Iterator[Variant]:
    pointer = _POINTERS[dtype]
    one = {
        "activations": (pointer,), "targets": (pointer,), "grads": (pointer,), "outs": ("*fp32",),
        "shares": ("*fp32",), "firsts": ("i32",), "samples": ("i32",), "sizes": ("i32",),
        "pieces": ("i32",),
    }  # fmt: skip
    block = {"COUNT": 1, "BLOCK": 4096}
    yield _variant("hint_terms_distances", hint_terms.distances_kernel, dtype, layout,
                   "all samples of all lanes", block, types=one, warps=8)  # fmt: skip
    yield _variant("hint_terms_gradients", hint_terms.gradients_kernel, dtype, layout,
                   "all samples of all lanes * pieces", block, types=one, warps=8)  # fmt: skip
    yield _variant("pgd_step_linf", pgd_step.linf_kernel, dtype, layout,
                   "ceil(size, BLOCK)", {"BLOCK": 2048})  # fmt: skip
    yield _variant("pgd_step_l2", pgd_step.l2_kernel, dtype, layout,
                   "samples", {"BLOCK": 4096}, types={"size": "i32"}, warps=8)  # fmt: skip


def _augment(dtype: str) -> Iterator[Variant]:
    for places in ("i64", "i32"):
        types = dict.fromkeys(("dy", "dx", "marker_y", "marker_x"), f"*{places}")
        types |= {"images": "*u8", "flip": "*u8"}
        for options, gone in (
            ("", ("markers", "marker_index", "marker_y", "marker_x")), ("_markers", ()),
        ):  # fmt: skip
            yield _variant(
                f"augment{options}_{places}", augment.augment_kernel, dtype, "any",
                "length of index * pieces", {"BLOCK": 1024} | _absent(*gone), types=types,
            )  # fmt: skip
