"""Which kernels, in which variants, are compiled ahead of time.

Names read noun_step[_options]_dtype_layout; grids are products of the kernel's arguments and
ceil(a, b), with the constants of the variant by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from triton import JITFunction

from ..augment import triton as augment
from ..hint_terms import triton as hint_terms
from ..lane_conv import device as lane_conv
from ..lane_norm import device as lane_norm
from ..pgd_step import triton as pgd_step
from ..shared import device as common
from ..shared.tiles import Tile, default
from ..stitch_hint import device as stitch_hint
from .compile import Variant, names

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
_STRIDES = ["x", "residual", "target", "y", "grad_y", "d_in", "d_out", "dx", "e"]
_INDICES = ["x_index", "target_index", "order", "starts", "index", "marker_index"]


class VariantCase(NamedTuple):
    """dtype and layout of a variant's activations."""

    dtype: str
    layout: str

    @property
    def fast(self) -> bool:
        """Channels-last, without gaps, aligned."""
        return self.layout == "fast"

    @property
    def pointer(self) -> str:
        """To an activation."""
        return _POINTERS[self.dtype]

    def tile(self, kernel: str) -> Tile:
        """The shipped tile of a kernel."""
        return default(kernel, DTYPES[self.dtype], self.fast)


@dataclass(frozen=True)
class VariantOptions:
    """What few variants differ in. axes: strides a tensor; types: of arguments unlike `_types`."""

    axes: int = 3
    types: Mapping[str, object] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3


_USUAL = VariantOptions()


def _types(case: VariantCase, axes: int) -> dict[str, object]:
    """Types by argument name; `axes` strides a tensor: (sample, position, channel[, front])."""
    strides = ("i64", "i64", 1 if case.fast else "i64", "i64")[:axes]
    return {
        **dict.fromkeys(_COUNTS, "i32"),
        **_SCALARS,
        **dict.fromkeys(_SUMS, "*fp32"),
        **dict.fromkeys(_ACTIVATIONS, case.pointer),
        **{f"{name}_strides": strides for name in _STRIDES},
        **dict.fromkeys(_INDICES, "*i64"),
    }


def _variant(
    name: str,
    kernel: JITFunction,
    case: VariantCase,
    grid: str,
    constants: Mapping[str, object],
    options: VariantOptions = _USUAL,
) -> Variant:
    kinds = {**_types(case, options.axes), **options.types}
    aligned: frozenset[str] = frozenset()
    if case.fast:
        pointers = [n for n, k in kinds.items() if str(k).lstrip("('").startswith("*")]
        strides = [n for n in kinds if n.endswith("_strides")]
        divisible = ("channels", "c1", "c2", "affine_stride", "size", "sizes")
        aligned = frozenset([*pointers, *strides, *divisible]) - {*_INDICES}
    known = {n: v for n, v in constants.items() if n in names(kernel)}
    named = f"{name}_{case.dtype}_{case.layout}"
    return Variant(named, kernel, kinds, known, aligned, grid, options.warps, options.stages)


def variants() -> Iterator[Variant]:
    """All of them, in a fixed order."""
    yield from _shared()
    for dtype in DTYPES:
        for layout in LAYOUTS:
            case = VariantCase(dtype, layout)
            yield from _norm(case)
            yield from _stitch(case)
            yield from _elementwise(case)
        yield from _augment(VariantCase(dtype, "any"))


def _absent(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


_SUM = VariantCase("f32", "any")


def _shared() -> Iterator[Variant]:
    for name, constant in (("columns", "stride_item"), ("rows", "stride_count")):
        other = {"stride_item": "stride_count", "stride_count": "stride_item"}[constant]
        sizes = {"COUNT": 16, "SIZE": 64} if name == "columns" else {"COUNT": 128, "SIZE": 16}
        types = {other: "i64", "out": "*fp32"}
        yield _variant(
            f"sum_partials_{name}", common.sum_partials_kernel, _SUM,
            "ceil(size, SIZE)", {constant: 1, **sizes}, VariantOptions(types=types),
        )  # fmt: skip
    yield _variant(
        "lane_norm_merge_stats", lane_norm.merge_stats_kernel, _SUM,
        "lanes * ceil(channels, COLS)", {"CHUNKS": 128, "COLS": 32},
    )  # fmt: skip


def _norm(case: VariantCase) -> Iterator[Variant]:
    def tile(kernel: str) -> dict[str, object]:
        chosen = case.tile(kernel)
        return {"FLAT": case.fast, "ROWS": chosen.rows, "COLS": chosen.cols}

    chunked = "lanes * chunks * ceil(channels, COLS)"
    tiled = "lanes * tiles * ceil(channels, COLS)"
    yield _variant("lane_norm_stats", lane_norm.stats_kernel, case, chunked, tile("stats"))
    for residual in (True, False) if case.fast else (True,):
        for target in (True, False):
            options = ("_residual" if residual else "") + ("_target" if target else "")
            gone = ["residual_norm"] if residual else ["residual", "residual_norm"]
            lost = [] if target else ["target"]
            yield _variant(
                f"lane_norm_normalise{options}", lane_norm.normalise_kernel, case,
                "lanes * tiles * parts",
                tile("normalise") | _absent(*gone, *lost, *(() if target else ("partial",))),
            )  # fmt: skip
            yield _variant(
                f"lane_norm_sums{options}", lane_norm.sums_kernel, case, chunked,
                tile("sums") | _absent("dx", *gone, *lost, *(() if target else ("grad_dist2",))),
            )  # fmt: skip
    yield _variant(
        "lane_norm_input_gradient", lane_norm.input_gradient_kernel, case, tiled,
        tile("norm_gradient")
        | _absent("residual", "residual_norm", "target", "grad_y", "grad_dist2", "d_out"),
    )  # fmt: skip


_STITCH_MODES: dict[str, tuple[str, ...]] = {
    "y": ("target", "partial", "grad_y", "grad_dist2"),
    "y_dist": ("grad_y", "grad_dist2"),
    "e": ("partial",),
    "dist": ("y", "grad_y", "grad_dist2"),
    "e_hint": ("partial", "grad_y"),
}
"""What `stitch_kernel` leaves out in each mode; the last two only in the fast layout."""


def _product(
    name: str,
    kernel: JITFunction,
    case: VariantCase,
    grid: str,
    constants: Mapping[str, object],
    types: Mapping[str, object],
) -> Variant:
    """A variant of a matrix product; its tile has the name of its kernel."""
    tile = case.tile(kernel.__name__.removesuffix("_kernel"))
    fixed = {"PRECISION": _PRECISION[case.dtype], "LANES_INNER": True, "FLAT": case.fast}
    sizes = {"ROWS": tile.rows, "COLS": tile.cols, "INNER": tile.inner, "DEPTH": tile.inner}
    types = {"weight": case.pointer, **types}
    options = VariantOptions(4, types, tile.warps, tile.stages)
    return _variant(name, kernel, case, grid, {**fixed, **sizes, **constants}, options)


def _stitch(case: VariantCase) -> Iterator[Variant]:
    cast = VariantOptions(types={"x": "*fp32", "out": case.pointer})
    yield _variant("cast", common.cast_kernel, case, "ceil(size, BLOCK)", {"BLOCK": 1024}, cast)
    half = case.dtype == "f16"
    for mode in list(_STITCH_MODES)[: 5 if case.fast else 3]:
        gradient = mode.startswith("e")
        yield _product(
            f"stitch_hint_{mode}", stitch_hint.stitch_kernel, case, "lanes * tiles * parts",
            _absent(*_STITCH_MODES[mode]) | {"GRADIENT": gradient},
            {"y": "*fp32"} if half and gradient else {},
        )  # fmt: skip
    if case.fast:
        for options, gone in (("", ("grad_y",)), ("_dy", ())):
            yield _product(
                f"stitch_hint_fused_gradient{options}", stitch_hint.fused_gradient_kernel, case,
                "lanes * splits * parts", _absent(*gone), {},
            )  # fmt: skip
    for options, e in (("", case.pointer), *((("_wide", "*fp32"),) if half else ())):
        yield _product(
            f"stitch_hint_weight_gradient{options}", stitch_hint.weight_gradient_kernel, case,
            "lanes * splits * parts", {}, {"e": e},
        )  # fmt: skip
        yield _product(
            f"stitch_hint_input_gradient{options}", stitch_hint.input_gradient_kernel, case,
            "fronts * tiles * ceil(c1, COLS)", {}, {"e": e},
        )  # fmt: skip


_CONV_PARTS = ("gain", "mean", "var", "centre", "dmean", "dvar", "scale")
_CONV_COUNTS = ("out_height", "out_width")


def unshipped() -> Iterator[Variant]:
    """`lane_conv` and the norm that joins a shortcut, which tests compile and nothing embeds: the C
    library gets them once a GPU has shown that they are faster than the vendor's convolution."""
    for dtype in DTYPES:
        case = VariantCase(dtype, "fast")
        yield from _joined(case)
        for stride in (1, 2):
            for normed in (True, False):
                yield from _conv(case, stride, normed)


def _joined(case: VariantCase) -> Iterator[Variant]:
    for step, kernel, grid in (
        ("normalise", lane_norm.normalise_kernel, "lanes * tiles * parts"),
        ("sums", lane_norm.sums_kernel, "lanes * chunks * ceil(channels, COLS)"),
    ):
        tile = case.tile("joined_sums" if step == "sums" else step)
        fixed = {"FLAT": True, "ROWS": tile.rows, "COLS": tile.cols}
        yield _variant(
            f"lane_norm_joined_{step}", kernel, case, grid,
            fixed | _absent("dx"),
        )  # fmt: skip


def _conv(case: VariantCase, stride: int, normed: bool) -> Iterator[Variant]:
    """3x3, forward and backward; without a norm before it is a block's first, and forks; with one
    it is the last, whose dy is scaled."""
    types: dict[str, object] = {
        **dict.fromkeys(("weight", "dy", "beside"), case.pointer),
        **dict.fromkeys(_CONV_PARTS, "*fp32"),
        **dict.fromkeys(_CONV_COUNTS, "i32"),
    }
    options = f"_{'normed' if normed else 'plain'}_stride{stride}"
    for name, kernel in (
        ("lane_conv", lane_conv.conv_kernel),
        ("lane_conv_gradient", lane_conv.conv_gradient_kernel),
    ):
        tile = case.tile(name)
        gone = ["beside"] if normed else ["prior", "scale"]
        if name.endswith("gradient") and not normed:
            gone.append("partial")
        fixed = {"KERNEL": 3, "STRIDE": stride, "PADDING": 1, "PRECISION": _PRECISION[case.dtype]}
        sizes = {"ROWS": tile.rows, "COLS": tile.cols, "INNER": tile.inner}
        yield _variant(
            name + options, kernel, case, "lanes * tiles * parts",
            {**fixed, **sizes, **_absent(*gone)},
            VariantOptions(types=types, warps=tile.warps, stages=tile.stages),
        )  # fmt: skip


def _elementwise(case: VariantCase) -> Iterator[Variant]:
    one = {
        **dict.fromkeys(("activations", "targets", "grads"), (case.pointer,)),
        **dict.fromkeys(("outs", "shares"), ("*fp32",)),
        **dict.fromkeys(("firsts", "samples", "sizes", "pieces"), ("i32",)),
    }
    block, terms = {"COUNT": 1, "BLOCK": 4096}, VariantOptions(types=one, warps=8)
    yield _variant("hint_terms_distances", hint_terms.distances_kernel, case,
                   "all samples of all lanes", block, terms)  # fmt: skip
    yield _variant("hint_terms_gradients", hint_terms.gradients_kernel, case,
                   "all samples of all lanes * pieces", block, terms)  # fmt: skip
    yield _variant("pgd_step_linf", pgd_step.linf_kernel, case,
                   "ceil(size, BLOCK)", {"BLOCK": 2048})  # fmt: skip
    yield _variant("pgd_step_l2", pgd_step.l2_kernel, case,
                   "samples", {"BLOCK": 4096},
                   VariantOptions(types={"size": "i32"}, warps=8))  # fmt: skip


def _augment(case: VariantCase) -> Iterator[Variant]:
    for places in ("i64", "i32"):
        types = dict.fromkeys(("dy", "dx", "marker_y", "marker_x"), f"*{places}")
        types |= {"images": "*u8", "flip": "*u8"}
        for options, gone in (
            ("", ("pasted",)), ("_markers", ()),
        ):  # fmt: skip
            yield _variant(
                f"augment{options}_{places}", augment.augment_kernel, case,
                "length of index * pieces", {"BLOCK": 1024} | _absent(*gone),
                VariantOptions(types=types),
            )  # fmt: skip
