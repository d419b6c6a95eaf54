"""One Triton kernel variant to PTX, several to one module, a module to a cubin. Needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHES = (80, 90)
PTX_ARCH = 80
"""Its PTX runs on every later chip; PTX that uses Hopper's own instructions would not."""
PTX_VERSION = 86
"""PTX 8.6: known to the older assembler that Triton ships, and to drivers from CUDA 12.7 on."""


@dataclass(frozen=True)
class Variant:
    """One kernel with everything that is decided at compile time.

    `types`: of the arguments that stay, by name: a Triton type, or a tuple of types and constants.
    `aligned`: names whose pointers, strides or counts are divisible by 16.
    """

    name: str
    kernel: triton.JITFunction
    types: Mapping[str, object]
    constants: Mapping[str, object]
    aligned: frozenset[str]
    grid: str
    warps: int = 4
    stages: int = 3
    tags: Mapping[str, object] = field(default_factory=dict)

    def source(self) -> ASTSource:
        """What Triton compiles."""
        signature: dict[str, object] = {}
        constants: dict[tuple[int, ...], object] = {}
        attributes: dict[tuple[int, ...], list] = {}
        for i, name in enumerate(self.kernel.arg_names):
            if name in self.constants:
                signature[name], constants[(i,)] = "constexpr", self.constants[name]
                continue
            kind = self.types[name]
            parts = kind if isinstance(kind, tuple) else (kind,)
            paths = [(i, j) if isinstance(kind, tuple) else (i,) for j in range(len(parts))]
            for path, part in zip(paths, parts, strict=True):
                if isinstance(part, int):
                    constants[path] = part
                elif name in self.aligned:
                    attributes[path] = [["tt.divisibility", 16]]
            marks = tuple("constexpr" if isinstance(p, int) else p for p in parts)
            signature[name] = marks if isinstance(kind, tuple) else marks[0]
        return ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)

    def arguments(self) -> list[tuple[str, str]]:
        """(name, type) of the kernel's parameters in order; Triton appends two scratch pointers."""
        found: list[tuple[str, str]] = []
        for name in self.kernel.arg_names:
            if name in self.constants:
                continue
            kind = self.types[name]
            if not isinstance(kind, tuple):
                found.append((name, kind))
                continue
            found += [(f"{name}[{j}]", p) for j, p in enumerate(kind) if not isinstance(p, int)]
        return [*found, ("global_scratch", "*i8"), ("profile_scratch", "*i8")]


@dataclass(frozen=True)
class Compiled:
    """A variant for one architecture, as Triton leaves it."""

    variant: Variant
    arch: int
    ptx: str
    shared: int


@dataclass(frozen=True)
class Usage:
    """What the assembler reports of a kernel: registers a thread, bytes spilled (stores, loads)."""

    registers: int
    spilled: int


@dataclass(frozen=True)
class Assembled:
    """A module's machine code, and its kernels' usage by name."""

    cubin: bytes
    usage: dict[str, Usage]


def compile_variant(variant: Variant, arch: int) -> Compiled:
    """PTX of one variant, its entry renamed to the variant's name."""
    from triton import knobs

    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True
        built = triton.compile(
            variant.source(),
            target=GPUTarget("cuda", arch, 32),
            options={
                "num_warps": variant.warps,
                "num_stages": variant.stages,
                "ptx_version": PTX_VERSION,
                "enable_fp_fusion": True,
            },
        )
    ptx = re.sub(rf"\b{variant.kernel.__name__}(?=\b|_param_)", variant.name, built.asm["ptx"])
    ptx = ptx.replace("_$_str", f"{variant.name}_str")  # constants that every module names alike
    return Compiled(variant, arch, ptx, built.metadata.shared)


_DECLARATION = re.compile(r"^\s*\.extern \.shared .*;$", re.MULTILINE)
_HEADER = re.compile(r"\.version \S+\n\.target [^\n]+\n\.address_size 64\n")


def merged(parts: list[Compiled]) -> str:
    """One PTX module with all entries of `parts`; header and shared-memory declaration once."""
    header = _HEADER.search(parts[0].ptx)[0]
    declaration = next(found[0] for p in parts if (found := _DECLARATION.search(p.ptx)))
    bodies = [_DECLARATION.sub("", _HEADER.sub("", p.ptx)) for p in parts]
    return "\n".join([header, declaration.strip(), *(b.strip() for b in bodies), ""])


def assemble(ptx: str, arch: int) -> Assembled:
    """Machine code of a PTX module. Raises `RuntimeError` with the assembler's words."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "k.ptx"), Path(folder, "k.cubin")
        source.write_text(ptx)
        name = "sm_90a" if arch == 90 else f"sm_{arch}"
        command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={name}", str(source), "-o", str(out)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
        return Assembled(out.read_bytes(), _usages(done.stderr))


_USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def _usages(report: str) -> dict[str, Usage]:
    return {
        name: Usage(int(registers), int(stores) + int(loads))
        for name, stores, loads, registers in _USAGE.findall(report)
    }


def vector_bits(ptx: str) -> int:
    """The widest global access per thread, in bits."""
    pattern = r"(?:ld|st)\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)"
    widths = [int(n or 1) * int(b) for n, b in re.findall(pattern, ptx)]
    widths += [8 * int(n) for n in re.findall(r"cp\.async[\w.]*global[^;]*, 0x(\w+)", ptx)]
    return max(widths, default=0)
