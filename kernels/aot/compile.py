"""One Triton kernel variant to PTX, several to one module, a module to a cubin. Needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..shared.device import View

ARCHES = (80, 90)
PTX_ARCH = 80
"""Its PTX runs on every later chip; PTX that uses Hopper's own instructions would not."""
PTX_VERSION = 86
"""PTX 8.6: known to the older assembler that Triton ships, and to drivers from CUDA 12.7 on."""


@dataclass(frozen=True)
class Variant:
    """One kernel with everything that is decided at compile time.

    An argument that is a record stands for its parts by their names; a `View` named x for the
    pointer x and the tuple x_strides. `types`: of the parts that stay, by name: a Triton type, or a
    tuple of types and constants. `constants`: the others, a whole record among them. `aligned`:
    names whose pointers, strides or counts are divisible by 16.
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

    def parts(self) -> Iterator[tuple[tuple[int, ...], str, object]]:
        """(path from the argument's number down, name, type or `Constant`) of every part."""
        records = get_type_hints(self.kernel.fn)
        for i, name in enumerate(self.kernel.arg_names):
            yield from _leaves((i,), name, self._argument(name, records.get(name)))

    def _argument(self, name: str, record: object) -> object:
        """A type or `Constant`; a tuple or a record of them where the argument is one."""
        if name in self.constants:
            return Constant(self.constants[name])
        for kind in _records(record):
            return kind(*(self._argument(n, inner) for n, inner in _fields(name, kind)))
        kinds = self.types[name]
        if isinstance(kinds, tuple):
            return tuple(Constant(kind) if isinstance(kind, int) else kind for kind in kinds)
        return kinds

    def source(self) -> ASTSource:
        """What Triton compiles."""
        records = get_type_hints(self.kernel.fn)
        signature = {
            name: _marked(self._argument(name, records.get(name))) for name in self.kernel.arg_names
        }
        constants: dict[tuple[int, ...], object] = {}
        attributes: dict[tuple[int, ...], list] = {}
        for path, name, kind in self.parts():
            if isinstance(kind, Constant):
                constants[path] = kind.value
            elif name.partition("[")[0] in self.aligned:
                attributes[path] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)

    def arguments(self) -> list[tuple[str, str]]:
        """(name, type) of the kernel's parameters in order; Triton appends two scratch pointers."""
        found = [(name, kind) for _, name, kind in self.parts() if isinstance(kind, str)]
        return [*found, ("global_scratch", "*i8"), ("profile_scratch", "*i8")]


@dataclass(frozen=True)
class Constant:
    """Fixed at compile time."""

    value: object


def names(kernel: triton.JITFunction) -> set[str]:
    """Of a kernel's arguments, and of the parts of those that are records."""
    records = get_type_hints(kernel.fn)
    found, wanted = set(), [(name, records.get(name)) for name in kernel.arg_names]
    while wanted:
        name, record = wanted.pop()
        found.add(name)
        wanted += [pair for kind in _records(record) for pair in _fields(name, kind)]
    return found


def _records(annotation: object) -> list[Any]:
    """The record that an annotation names, `View | None` too; none for what is no record."""
    return [kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "_fields")]


def _fields(name: str, record: type) -> list[tuple[str, object]]:
    """(name, annotation) of a record's parts."""
    if record is View:
        return [(name, None), (f"{name}_strides", None)]
    return list(get_type_hints(record).items())


def _marked(kind: object) -> object:
    """A type, or the word for a constant; records and tuples of them alike."""
    if isinstance(kind, tuple):
        marks = map(_marked, kind)
        return type(kind)(*marks) if hasattr(kind, "_fields") else tuple(marks)
    return "constexpr" if isinstance(kind, Constant) else kind


def _leaves(
    path: tuple[int, ...], name: str, kind: object
) -> Iterator[tuple[tuple[int, ...], str, object]]:
    """(path, name, type or `Constant`) of what `Variant._argument` makes."""
    if not isinstance(kind, tuple):
        yield path, name, kind
        return
    inner = [f"{name}[{j}]" for j in range(len(kind))]
    if hasattr(kind, "_fields"):
        inner = [n for n, _ in _fields(name, type(kind))]
    for j, (part, each) in enumerate(zip(inner, kind, strict=True)):
        yield from _leaves((*path, j), part, each)


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
