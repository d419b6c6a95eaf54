"""fula_core's GPU side against the reference of `fula_fast.kernels`, with and without a GPU.

    TRITON_INTERPRET=1 FULA_LIBCUDA=libfake_cuda.so python emulated_cuda.py libfula_core.so
    python emulated_cuda.py libfula_core.so                               (on a real device)

Without one, a stand-in for the driver hands every launch to this process, which checks it against
the manifest and runs it in Triton's interpreter. So the launchers' arguments, grids, shared memory,
scratch and order of launches are all proved by the numbers that come out.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from torch import Tensor

from fula_fast import kernels
from fula_fast.kernels import backend
from fula_fast.kernels.aot.variants import variants
from fula_fast.kernels.shared.device import View

DTYPES = {
    torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3, torch.uint8: 4,
    torch.bool: 5, torch.int32: 6, torch.int64: 7,
}  # fmt: skip
POINTED = {
    "*fp32": torch.float32, "*bf16": torch.bfloat16, "*fp16": torch.float16, "*u8": torch.uint8,
    "*i8": torch.int8, "*i64": torch.int64, "*i32": torch.int32,
}  # fmt: skip
SCALARS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
HALVES = (torch.bfloat16, torch.float16)


class FulaTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 5),
        ("stride", ctypes.c_int64 * 5),
    ]


class Emulator:
    """Runs launches, and remembers what was launched."""

    def __init__(self, fake: ctypes.CDLL) -> None:
        self.fake = fake
        self.fake.fake_extent.restype = ctypes.c_size_t
        manifest = json.loads(
            (Path(kernels.__file__).parent / "cuda" / "manifest.json").read_text()
        )
        self.entries = {entry["name"]: entry for entry in manifest["kernels"]}
        self.kernels = {v.name: (v.kernel, dict(v.constants)) for v in variants()}
        self.tensors: list[Tensor] = []
        self.launched: Counter[str] = Counter()
        self.major = 9
        self.failure: BaseException | None = None
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint,
            ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p,
        )  # fmt: skip
        self.callback = kind(self.launch)  # kept: the library holds only its address
        self.configure()

    def configure(self, major: int = 9, fail_allocations: bool = False) -> None:
        self.major = major
        self.fake.fake_set(self.callback, major, int(fail_allocations))

    def launch(self, name, grid, threads, shared, arguments, stream) -> int:
        try:
            self.run(name.decode(), grid, threads, shared, arguments)
        except BaseException as error:  # noqa: BLE001  C cannot pass it on; `call` raises it
            self.failure = error
            return 999
        return 0

    def run(self, name: str, grid: int, threads: int, shared: int, arguments) -> None:
        entry = self.entries[name]
        assert threads == entry["threads"], (name, threads)
        assert shared == entry["shared"]["90" if self.major == 9 else "80"], (name, shared)
        values = {
            argument: self.value(kind, arguments[i])
            for i, (argument, kind) in enumerate(entry["arguments"])
        }
        check_grid(entry, values, grid)
        self.launched[name] += 1
        kernel, constants = self.kernels[name]
        constants = constants | entry["constants"]  # what the binary was built with
        if "_fast" in name:
            check_alignment(name, values)
        records = get_type_hints(kernel.fn)
        kernel[(grid,)](
            *(argument_of(n, records.get(n), values, constants) for n in kernel.arg_names)
        )

    def value(self, kind: str, address: int) -> object:
        if kind in SCALARS:
            return SCALARS[kind].from_address(address).value
        return self.memory(ctypes.c_uint64.from_address(address).value, POINTED[kind])

    def memory(self, pointer: int, dtype: torch.dtype) -> Tensor | None:
        """What lies at a device address, to the end of its tensor or scratch memory."""
        if not pointer:
            return None
        size = self.fake.fake_extent(ctypes.c_uint64(pointer)) or self.extent(pointer)
        assert size, hex(pointer)
        buffer = (ctypes.c_byte * (size // dtype.itemsize * dtype.itemsize)).from_address(pointer)
        return torch.frombuffer(buffer, dtype=dtype)

    def extent(self, pointer: int) -> int:
        for t in self.tensors:
            end = t.untyped_storage().data_ptr() + t.untyped_storage().nbytes()
            if t.untyped_storage().data_ptr() <= pointer < end:
                return end - pointer
        return 0


def check_grid(entry: dict, values: dict, grid: int) -> None:
    """The manifest's formula, where it is one."""
    names = {**entry["constants"], **{n: v for n, v in values.items() if isinstance(v, int)}}
    try:
        wanted = eval(entry["grid"], {"ceil": lambda a, b: -(-a // b)}, names)
    except (SyntaxError, NameError):
        return  # in words
    assert grid == wanted, (entry["name"], grid, wanted)


def check_alignment(name: str, values: dict) -> None:
    """What `fast` kernels were promised."""
    for argument, value in values.items():
        if isinstance(value, Tensor) and not argument.endswith("index"):
            assert argument in ("order", "starts") or value.data_ptr() % 16 == 0, (name, argument)
        if argument in ("channels", "c1", "c2", "size") or "_strides" in argument:
            assert value % 16 == 0, (name, argument, value)


def argument_of(name: str, record: object, values: dict, constants: dict) -> object:
    """An argument of a kernel by its name, a record made of its parts by theirs."""
    if name in constants:
        return constants[name]
    kinds = [kind for kind in (record, *get_args(record)) if hasattr(kind, "_fields")]
    if View in kinds:
        return View(values[name], argument_of(f"{name}_strides", None, values, constants))
    for kind in kinds:
        hints = get_type_hints(kind)
        return kind(*(argument_of(n, hints[n], values, constants) for n in kind._fields))
    if name in values:
        return values[name]
    parts = {int(m[1]): v for n, v in values.items() if (m := re.fullmatch(rf"{name}\[(\d)\]", n))}
    if name.endswith("_strides"):
        return tuple(parts.get(i, 1) for i in range(4 if 3 in parts else 3))
    return tuple(parts[i] for i in sorted(parts))


class Library:
    """fula_core by ctypes; every tensor passed is said to be on a GPU."""

    def __init__(self, path: str, emulator: Emulator) -> None:
        self.lib = ctypes.CDLL(path)
        self.lib.fula_error_message.restype = ctypes.c_char_p
        self.emulator = emulator

    def call(self, name: str, *arguments: object) -> None:
        status = self.status(name, *arguments)
        if self.emulator.failure:
            raise self.emulator.failure
        assert status == 0, (name, status, self.message())
        assert self.emulator.fake.fake_live() == 0, "scratch memory was kept"

    def message(self) -> str:
        return self.lib.fula_error_message().decode()

    def status(self, name: str, *arguments: object) -> int:
        self.emulator.tensors = [a for a in arguments if isinstance(a, Tensor)]
        self.emulator.failure = None
        return getattr(self.lib, name)(*map(self.argument, arguments))

    def argument(self, value: object) -> object:
        if isinstance(value, Tensor):
            return ctypes.byref(described(value))
        if isinstance(value, Host):
            return ctypes.byref(described(value.tensor, device=0))
        if isinstance(value, float):
            return ctypes.c_double(value)
        return ctypes.c_int64(value) if isinstance(value, int) else value


class OnDevice(Library):
    """The same calls on a real GPU: tensors go there and come back."""

    def __init__(self, path: str) -> None:
        self.lib = ctypes.CDLL(path)
        self.lib.fula_error_message.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: object) -> None:
        there = [a.cuda() if isinstance(a, Tensor) else a for a in arguments]
        status = getattr(self.lib, name)(*map(self.argument, there))
        assert status == 0, (name, status, self.message())
        torch.cuda.synchronize()
        for here, moved in zip(arguments, there, strict=True):
            if isinstance(here, Tensor):
                here.copy_(moved)


class Host:
    """A tensor that the call wants on the host."""

    def __init__(self, values: list[int]) -> None:
        self.tensor = torch.tensor(values)


def described(t: Tensor, device: int = 1) -> FulaTensor:
    return FulaTensor(
        t.data_ptr() or None, DTYPES[t.dtype], device, t.dim(),
        (ctypes.c_int64 * 5)(*t.shape), (ctypes.c_int64 * 5)(*t.stride()),
    )  # fmt: skip


def close(name: str, got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    scale = 1 + wanted.abs().max().item()
    error = (got.double() - wanted.double()).abs().max().item()
    tolerance = 5e-2 if dtype in HALVES else 2e-4
    assert error <= tolerance * scale, (name, dtype, error, scale)


def maps(dtype: torch.dtype, last: bool, *shape: int) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout)


def norm_case(lib, dtype, last, channels, training, residual, target, incoming) -> None:
    lanes, batch, size = 2, 3, 5
    shape = (lanes * batch, channels, size, size)
    x, dy = maps(dtype, last, *shape), maps(dtype, last, *shape) if incoming else None
    extra = maps(dtype, last, *shape) if residual else None
    aim = maps(dtype, last, batch, *shape[1:]) if target else None
    weight, bias = torch.rand(channels) + 0.5, torch.randn(channels)
    mean, var = torch.randn(lanes, channels) / 4, torch.rand(lanes, channels) + 0.5
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    more = [extra.double().requires_grad_()] if residual else []
    want_y, want_mean, want_var, want_dist = kernels.lane_norm(
        *leaves, mean.double(), var.double(), lanes=lanes, training=training, eps=1e-5,
        residual=more[0] if residual else None, relu=True,
        target=aim.double() if target else None,
    )  # fmt: skip
    y, dist2 = torch.empty_like(x), torch.empty(lanes, batch) if target else None
    rest = (lanes, int(training), 1e-5, 1)
    lib.call("fula_lane_norm_forward", x, weight, bias, mean, var, extra, aim, *rest, y, dist2)
    close("y", y, want_y, dtype)
    close("mean", mean, want_mean, torch.float32)
    close("var", var, want_var, torch.float32)
    shares = torch.rand(lanes, batch) if target else None
    loss = (want_y * dy.double()).sum() if incoming else 0
    if target:
        close("dist2", dist2, want_dist, dtype)
        loss = loss + (want_dist * shares.double()).sum()
    wanted = torch.autograd.grad(loss, leaves + more)
    dx, dw, db = torch.empty_like(x), torch.empty(lanes, channels), torch.empty(lanes, channels)
    dextra = torch.empty_like(x) if residual else None
    lib.call(
        "fula_lane_norm_backward", dy, shares, x, weight, bias, mean, var, extra, aim, *rest,
        dx, dextra, dw, db,
    )  # fmt: skip
    for name, got, want in zip(
        ("dx", "dw", "db", "dresidual"), (dx, dw.sum(0), db.sum(0), dextra), wanted, strict=False
    ):
        close(name, got, want, dtype)


def stitch_case(lib, dtype, last, c1, c2, write, target, incoming, need_dx) -> None:
    sources, index, aims = 3, [2, 0, 2], [1, 1, 0]
    lanes, batch, size = 3, 2, 5

    def fronts(count: int, channels: int) -> Tensor:
        return maps(dtype, last, count * batch, channels, size, size).unflatten(0, (count, batch))

    x, goal = fronts(sources, c1), fronts(2, c2) if target else None
    weight, bias = torch.randn(lanes, c2, c1) / c1**0.5, torch.randn(lanes, c2)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    want_y, want_dist = kernels.stitch_hint(
        *leaves, index, goal.double() if target else None, aims if target else None
    )
    y = maps(dtype, last, lanes * batch, c2, size, size) if write else None
    dist2 = torch.empty(lanes, batch) if target else None
    places = (Host(index), goal, Host(aims) if target else None)
    lib.call("fula_stitch_hint_forward", x, weight, bias, *places, y, dist2)
    if write:
        close("y", y, want_y, dtype)
    dy = maps(dtype, last, lanes * batch, c2, size, size) if incoming else None
    shares = torch.rand(lanes, batch) if target else None
    loss = (want_y * dy.double()).sum() if incoming else 0
    if target:
        close("dist2", dist2, want_dist, dtype)
        loss = loss + (want_dist * shares.double()).sum()
    wanted = torch.autograd.grad(loss, leaves)
    dw, db = torch.empty_like(weight), torch.empty_like(bias)
    dx = torch.empty_like(x) if need_dx else None
    lib.call("fula_stitch_hint_backward", dy, shares, x, weight, bias, *places, None, dw, db, dx)
    close("dw", dw, wanted[1], dtype)
    close("db", db, wanted[2], dtype)
    if need_dx:
        close("dx", dx, wanted[0], dtype)


def elementwise_case(lib, dtype, size) -> None:
    a, t = torch.randn(6, size).to(dtype), torch.randn(3, size).to(dtype)
    dist2, shares, grad = torch.empty(2, 3), torch.rand(2, 3), torch.empty_like(a)
    lib.call("fula_hint_terms_forward", 1, a, t, dist2)
    leaf = a.double().requires_grad_()
    (wanted,) = kernels.hint_terms([leaf], [t.double()])
    close("dist2", dist2, wanted, dtype)
    lib.call("fula_hint_terms_backward", 1, a, t, shares, grad)
    close("grad", grad, torch.autograd.grad(wanted, leaf, shares.double())[0], dtype)
    clean, out = torch.rand(6, size).to(dtype), torch.empty_like(a)
    for kind, norm in enumerate(("linf", "l2")):
        lib.call("fula_pgd_step", clean, a, clean, 0.1, 0.05, kind, out)
        wanted = kernels.pgd_step(clean.double(), a.double(), clean.double(), 0.1, 0.05, norm)
        close(norm, out, wanted, dtype)


def augment_case(lib, dtype, wide, marked) -> None:
    kind = torch.int64 if wide else torch.int32
    images = torch.randint(0, 256, (5, 6, 7, 3), dtype=torch.uint8)
    index = torch.tensor([4, 0, 3])
    dy, dx = (torch.randint(0, 5, (5,), dtype=kind) for _ in range(2))
    flip = torch.tensor([True, False, True, True, False])
    markers = (
        torch.rand(2, 2, 3, 3), torch.tensor([0, 1, 1, 0, 1]),
        *(torch.randint(-1, 5, (5,), dtype=kind) for _ in range(2)),
    ) if marked else (None,) * 4  # fmt: skip
    out = torch.empty((3, 3, 6, 7), dtype=dtype, memory_format=torch.channels_last)
    lib.call("fula_augment", images, index, dy, dx, flip, 2, *markers, out)
    wanted = kernels.augment(images, index, dy, dx, flip, 2, *markers, dtype=dtype)
    assert torch.equal(out, wanted), (dtype, wide, marked)


def refusals(lib: Library, emulator: Emulator) -> None:
    """What fails says why, and leaves no scratch memory behind."""
    x, out, d = torch.randn(4, 16), torch.empty(2, 2), torch.randn(2, 16)
    arguments = ("fula_hint_terms_forward", 1, x, d, out)
    emulator.fake.fake_new_context()
    emulator.configure(major=7)
    assert lib.status(*arguments) == 8 and "compute capability 7" in lib.message()
    for major, magic in ((8, b"\x7fELF"), (12, b".ver")):
        emulator.fake.fake_new_context()
        emulator.configure(major=major)
        lib.call(*arguments)
        assert ctypes.string_at(emulator.fake.fake_image(), 4).startswith(magic)
    shape = (2, 16, 3, 3)
    maps_, mean = maps(torch.float32, True, *shape), torch.empty(1, 16)
    norm = (maps_, torch.ones(16), torch.zeros(16), mean, mean.clone(), None, None, 1, 1, 1e-5, 0)
    emulator.configure(major=12, fail_allocations=True)
    status = lib.status("fula_lane_norm_forward", *norm, torch.empty_like(maps_), None)
    assert status == 7 and "out of memory" in lib.message()
    emulator.configure(major=12)
    double = torch.randn(4, 16, dtype=torch.float64)
    sums = torch.empty(2, 2, dtype=torch.float64)
    assert lib.status("fula_hint_terms_forward", 1, double, double[:2].clone(), sums) == 2
    assert emulator.fake.fake_live() == 0
    emulator.fake.fake_new_context()
    emulator.configure()


def devices(lib: Library, emulator: Emulator) -> None:
    """A call works where its tensors are, and leaves the thread's context as it was."""
    fake = emulator.fake
    fake.fake_launched_in.restype = ctypes.c_void_p
    primary, other, second = 0x100, 0x210, 0x10100  # of the first device, first, second
    # (the thread's context, the memory's, its device, where the call works)
    for current, held_by, device, expected in (
        (primary, second, 1, second),
        (primary, other, 0, other),
        (second, primary, 0, primary),
        (None, second, 1, second),
        (None, None, 1, second),
        (primary, None, 1, second),
        (other, None, 0, other),
        (second, None, 0, primary),
    ):
        fake.cuCtxSetCurrent(ctypes.c_void_p(current))
        for noun in (one_norm, one_stitch, one_of_each_other):
            noun(Placed(lib, held_by, device))
            assert fake.fake_launched_in() == expected, (noun, current, held_by, device)
            assert current_context(fake) == current
    assert fake.fake_retained(0) <= 1 and fake.fake_retained(1) <= 1
    x = torch.randn(4, 16)
    fake.fake_place(ctypes.c_uint64(x.data_ptr()), ctypes.c_size_t(256), None, -1)
    assert lib.status("fula_pgd_step", x, x.clone(), x.clone(), 0.1, 0.1, 0, x.clone()) == 8
    assert "cuPointerGetAttribute" in lib.message()
    fake.fake_forget_places()


def current_context(fake: ctypes.CDLL) -> int | None:
    found = ctypes.c_void_p()
    fake.cuCtxGetCurrent(ctypes.byref(found))
    return found.value


class Placed(Library):
    """The library, with every tensor of a call said to lie in a context (None: a pool) of a device."""

    def __init__(self, lib: Library, context: int | None, device: int) -> None:
        self.inner, self.place = lib, (ctypes.c_void_p(context), device)

    def call(self, name: str, *arguments: object) -> None:
        fake = self.inner.emulator.fake
        for memory in (a.untyped_storage() for a in arguments if isinstance(a, Tensor)):
            at, size = ctypes.c_uint64(memory.data_ptr()), ctypes.c_size_t(memory.nbytes())
            fake.fake_place(at, size, *self.place)
        self.inner.call(name, *arguments)
        fake.fake_forget_places()


def one_norm(lib: Library) -> None:
    norm_case(lib, torch.float32, True, 7, True, False, True, True)


def one_stitch(lib: Library) -> None:
    stitch_case(lib, torch.bfloat16, True, 5, 9, True, True, True, True)


def one_of_each_other(lib: Library) -> None:
    elementwise_case(lib, torch.float32, 37)
    augment_case(lib, torch.float32, True, True)


def cases(lib: Library) -> None:
    """Every noun, both layouts, with and without each optional tensor."""
    for dtype in (torch.float32, *HALVES):
        for last, channels in ((True, 32), (True, 7), (False, 16)):
            norm_case(lib, dtype, last, channels, True, True, True, True)
            norm_case(lib, dtype, last, channels, False, False, True, False)
            norm_case(lib, dtype, last, channels, True, False, False, True)
        norm_case(lib, dtype, True, 16, True, True, False, True)
        norm_case(lib, dtype, True, 16, True, False, True, True)
        for last, c1, c2 in ((True, 32, 16), (True, 5, 9), (False, 16, 16)):
            stitch_case(lib, dtype, last, c1, c2, False, True, False, False)
            stitch_case(lib, dtype, last, c1, c2, True, True, True, True)
            stitch_case(lib, dtype, last, c1, c2, True, False, True, last)
        stitch_case(lib, dtype, True, 256, 16, True, True, True, False)
        stitch_case(lib, dtype, True, 256, 16, False, True, False, True)
        stitch_case(lib, dtype, True, 16, 16, False, True, True, False)
        for size in (48, 37):
            elementwise_case(lib, dtype, size)
        for wide, marked in itertools.product((True, False), repeat=2):
            augment_case(lib, dtype, wide, marked)
    stitch_case(lib, torch.float16, False, 16, 16, True, False, True, True)


def main(path: str) -> None:
    torch.manual_seed(0)
    if "FULA_LIBCUDA" not in os.environ:
        cases(OnDevice(path))
        print("numbers agree on", torch.cuda.get_device_name())
        return
    fake = ctypes.CDLL(os.environ["FULA_LIBCUDA"])
    fake.fake_image.restype = ctypes.c_void_p
    emulator = Emulator(fake)
    lib = Library(path, emulator)
    cases(lib)
    refusals(lib, emulator)
    devices(lib, emulator)
    missed = sorted(set(emulator.entries) - set(emulator.launched))
    print(f"{sum(emulator.launched.values())} launches of {len(emulator.launched)} kernels")
    print("never launched:", *missed)


if __name__ == "__main__":
    with backend.using("reference"):
        main(sys.argv[1])
