"""Ahead-of-time compilation of the Triton kernels, for the C++ library and for inspection.

    python -m fula_fast.kernels.aot OUTPUT_FOLDER

writes kernels.tar.xz (one cubin per architecture, one PTX file for later chips) and manifest.json;
`kernels/cuda/README.md` describes both. It needs no GPU. Not with TRITON_INTERPRET=1.

Kernels come in two layouts. `fast`: channels-last activations without gaps, channel counts
divisible by 16, pointers aligned to 16 bytes. `any`: whatever strides; optional inputs are a zero
element with strides 0 there, so that one variant serves.
"""

from __future__ import annotations

import io
import json
import lzma
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import triton

from .compile import (
    ARCHES,
    PTX_ARCH,
    Compiled,
    Usage,
    Variant,
    assemble,
    compile_variant,
    merged,
    vector_bits,
)
from .variants import variants


def build(chosen: Iterable[Variant]) -> tuple[dict[str, bytes], dict]:
    """(binaries by file name, manifest) of all variants."""
    chosen = list(chosen)
    compiled = {arch: [compile_variant(v, arch) for v in chosen] for arch in ARCHES}
    modules = {arch: merged(parts) for arch, parts in compiled.items()}
    assembled = {arch: assemble(modules[arch], arch) for arch in ARCHES}
    files = {f"sm_{arch}.cubin": assembled[arch].cubin for arch in ARCHES}
    files[f"sm_{PTX_ARCH}.ptx"] = modules[PTX_ARCH].encode()
    manifest = {
        "triton": triton.__version__,
        "archive": "kernels.tar.xz",
        "cubins": {str(arch): f"sm_{arch}.cubin" for arch in ARCHES},
        "ptx": f"sm_{PTX_ARCH}.ptx",
        "kernels": [
            _entry(v, {a: (compiled[a][i], assembled[a].usage[v.name]) for a in ARCHES})
            for i, v in enumerate(chosen)
        ],
    }
    return files, manifest


def _entry(variant: Variant, built: Mapping[int, tuple[Compiled, Usage]]) -> dict:
    """What a launcher must know about one kernel, and what the assembler says of it."""
    sizes = {n: v for n, v in variant.constants.items() if isinstance(v, int) and n.isupper()}
    return {
        "name": variant.name,
        "arguments": [list(argument) for argument in variant.arguments()],
        "grid": variant.grid,
        "threads": 32 * variant.warps,
        "constants": {n: int(v) for n, v in sizes.items()},
        "absent": [n for n, v in variant.constants.items() if v is None],
        "shared": {str(arch): one.shared for arch, (one, _) in built.items()},
        "registers": {str(arch): usage.registers for arch, (_, usage) in built.items()},
        "spilled_bytes": {str(arch): usage.spilled for arch, (_, usage) in built.items()},
        "vector_bits": {str(arch): vector_bits(one.ptx) for arch, (one, _) in built.items()},
    }


def pack(files: Mapping[str, bytes]) -> bytes:
    """A tar.xz whose bytes depend on nothing but names and contents."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def written(manifest: dict) -> str:
    """The manifest as its file has it: one kernel a line."""
    head = {k: v for k, v in manifest.items() if k != "kernels"}
    lines = ",\n".join(json.dumps(kernel) for kernel in manifest["kernels"])
    return json.dumps(head)[:-1] + ',\n"kernels": [\n' + lines + "\n]}\n"


def main(folder: str) -> None:
    """Write the archive and the manifest."""
    files, manifest = build(variants())
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernels.tar.xz").write_bytes(pack(files))
    (out / "manifest.json").write_text(written(manifest))


if __name__ == "__main__":
    main(*sys.argv[1:])
