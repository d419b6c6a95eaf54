"""Ahead-of-time compilation: hot kernels do not spill, loads are vectors, binaries are up to date.

Compiles for sm_80 and sm_90 without a GPU; not in a process that interprets Triton.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter and the compiler do not mix", allow_module_level=True)

import fula_fast.kernels
from fula_fast.kernels.aot import __main__ as aot
from fula_fast.kernels.aot.compile import (
    ARCHES,
    PTX_ARCH,
    assemble,
    compile_variant,
    merged,
    vector_bits,
)
from fula_fast.kernels.aot.variants import unshipped, variants

BINARIES = Path(fula_fast.kernels.__file__).parent / "cuda"
ALL = {variant.name: variant for variant in variants()}
UNSHIPPED = {variant.name: variant for variant in unshipped()}
HOT = [
    "lane_norm_stats_bf16_fast",
    "lane_norm_normalise_residual_target_bf16_fast",
    "lane_norm_sums_residual_target_bf16_fast",
    "lane_norm_input_gradient_bf16_fast",
    "stitch_hint_y_dist_bf16_fast",
    "stitch_hint_fused_gradient_dy_bf16_fast",
    "stitch_hint_weight_gradient_bf16_fast",
    "hint_terms_distances_bf16_fast",
]
# Registers a thread may take and still leave the SM enough threads to hide memory's latency.
LEAN = {"lane_norm_stats": 128, "lane_norm_normalise": 96, "lane_norm_sums": 168, "hint_terms": 64}


def _built(names: list[str], arch: int):
    parts = [compile_variant(ALL[name], arch) for name in names]
    return parts, assemble(merged(parts), arch)


@pytest.mark.parametrize("arch", ARCHES)
def test_hot_kernels_neither_spill_nor_load_scalars(arch):
    parts, module = _built(HOT, arch)
    for part in parts:
        name = part.variant.name
        usage = module.usage[name]
        assert usage.spilled == 0, name
        assert vector_bits(part.ptx) == 128, name
        for kernel, most in LEAN.items():
            if name.startswith(kernel):
                assert usage.registers <= most, (name, usage)


def test_products_use_the_tensor_cores_of_each_chip():
    for arch, instruction in ((80, "mma.sync.aligned.m16n8k16"), (90, "wgmma.mma_async")):
        for name in ("stitch_hint_y_dist_bf16_fast", "stitch_hint_fused_gradient_dy_bf16_fast"):
            assert instruction in compile_variant(ALL[name], arch).ptx


@pytest.mark.parametrize(
    "name",
    [n for n in UNSHIPPED if "bf16" in n and "conv" in n and ("normed" in n or "gradient" in n)],
)
def test_fused_convolutions_spill_nothing_load_vectors_and_multiply_in_tensor_cores(name):
    part = compile_variant(UNSHIPPED[name], 90)
    usage = assemble(part.ptx, 90).usage[name]
    assert usage.spilled == 0, usage
    assert vector_bits(part.ptx) == 128
    assert "wgmma.mma_async" in part.ptx
    assert "cp.async" in part.ptx  # the next tiles come while these are multiplied
    assert "ld.local" not in part.ptx and "st.local" not in part.ptx


@pytest.mark.parametrize("arch", ARCHES)
def test_a_norm_that_joins_a_shortcut_spills_nothing_and_loads_vectors(arch):
    for name, most in (("normalise", 128), ("sums", 168)):
        part = compile_variant(UNSHIPPED[f"lane_norm_joined_{name}_bf16_fast"], arch)
        usage = assemble(part.ptx, arch).usage[part.variant.name]
        assert usage.spilled == 0 and usage.registers <= most, usage
        assert vector_bits(part.ptx) == 128


@pytest.mark.slow
def test_fused_convolutions_of_every_dtype_spill_nothing_on_the_chip_they_are_for():
    """On sm_80 the default tiles spill up to 144 bytes; smaller ones are there for `tune`."""
    parts = [compile_variant(variant, 90) for variant in UNSHIPPED.values()]
    usage = assemble(merged(parts), 90).usage
    assert {name: usage[name].spilled for name in UNSHIPPED} == dict.fromkeys(UNSHIPPED, 0)


def test_a_variant_s_arguments_are_those_of_its_entry():
    sizes = {"i32": "u32", "i64": "u64", "fp32": "f32"}
    for name in ("lane_norm_normalise_target_bf16_fast", "hint_terms_gradients_f32_any"):
        ptx = compile_variant(ALL[name], PTX_ARCH).ptx
        entry = re.search(r"\.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
        given = re.findall(r"\.param \.(\w+)", entry[2])
        wanted = [sizes.get(kind, "u64") for _, kind in ALL[name].arguments()]
        assert entry[1] == name
        assert [kind.replace("b", "u") if kind != "f32" else kind for kind in given] == wanted


def _committed() -> tuple[dict, dict[str, bytes]]:
    manifest = json.loads((BINARIES / "manifest.json").read_text())
    with tarfile.open(fileobj=io.BytesIO((BINARIES / manifest["archive"]).read_bytes())) as archive:
        return manifest, {m.name: archive.extractfile(m).read() for m in archive.getmembers()}


def test_the_manifest_tells_of_every_variant():
    manifest, files = _committed()
    assert [kernel["name"] for kernel in manifest["kernels"]] == list(ALL)
    entries = set(re.findall(r"\.entry (\w+)\(", files[manifest["ptx"]].decode()))
    assert entries == set(ALL)
    for kernel in manifest["kernels"]:
        variant = ALL[kernel["name"]]
        assert kernel["arguments"] == [list(argument) for argument in variant.arguments()]
        assert kernel["grid"] == variant.grid and kernel["threads"] == 32 * variant.warps
        if kernel["name"].endswith("_fast"):
            assert set(kernel["spilled_bytes"].values()) == {0}, kernel["name"]


def test_the_binaries_are_small():
    assert sum(f.stat().st_size for f in BINARIES.iterdir()) < 3_000_000


def _same_compiler(manifest: dict) -> None:
    if manifest["triton"] != triton.__version__:
        pytest.skip(f"the binaries are Triton {manifest['triton']}'s, this is {triton.__version__}")


def test_two_kernels_are_what_the_binaries_hold():
    manifest, files = _committed()
    _same_compiler(manifest)
    held = files[manifest["ptx"]].decode()
    for name in ("lane_norm_normalise_target_bf16_fast", "hint_terms_gradients_f32_any"):
        body = compile_variant(ALL[name], PTX_ARCH).ptx
        assert body[body.index(".entry") :].strip() in held, name


@pytest.mark.slow
def test_the_binaries_are_what_the_kernels_compile_to():
    manifest, files = _committed()
    _same_compiler(manifest)
    built, told = aot.build(variants())
    assert aot.written(told) == (BINARIES / "manifest.json").read_text()
    assert built.keys() == files.keys()
    for name, content in built.items():
        assert content == files[name], name
