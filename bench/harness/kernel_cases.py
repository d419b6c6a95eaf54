"""Which cases `bench kernels` measures, in which order, and what memory they take."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fula_fast.device.memory import available_memory

SITES = {"32x32": (64, 32), "16x16": (128, 16), "8x8": (256, 8), "4x4": (512, 4)}
"""Channels and size at ResNet-18's four resolutions; its nine sites have no others."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = ("eager", "ours", "compile")
LANES = {"cuda": "16,324", "cpu": "1,16"}
"""The most telling first. On CUDA targets are for 16 lanes and more, by graph replay."""
PLAIN_SHARE = 0.5
"""Of the time: until then nothing is tuned by `torch.compile`, unless all else is measured."""
NOUNS = ("stitch_hint", "lane_norm", "stitch_hint+y", "hint_terms")
"""The most telling first; `+y` writes the stitched activations too."""
PIXELS = ("augment", "pgd_step linf", "pgd_step l2")
TARGETS = {("stitch_hint", "eager"): 4.0, ("stitch_hint", "compile"): 1.3,
           ("lane_norm", "compile"): 1.2}  # fmt: skip
"""On CUDA, forward and backward: at least so many times as fast."""
FLOOR_TARGET = ("stitch_hint+y", "32x32"), 0.75
"""On CUDA, forward and backward: at least this share of the floor, which is the copy rate there."""
_PLAIN_BYTES = {"lane_norm": 48, "hint_terms": 24, "stitch_hint": 21, "stitch_hint+y": 29}
"""Peak bytes of PyTorch's own forward and backward, by element of all lanes' activations: measured
on a CPU at 16x16 with 4 and 12 lanes in both dtypes, the largest of the four."""
_OUR_TENSORS = {"lane_norm": 6, "hint_terms": 2, "stitch_hint": 0, "stitch_hint+y": 2}
"""Tensors of all lanes' activations that ours has at most, inputs and gradients included."""
_OUR_WORKSPACE = 1 << 30


@dataclass(frozen=True)
class Case:
    """One measurement's place; `batch` samples a lane."""

    site: str
    lanes: int
    dtype: str
    device: str
    batch: int = 128

    def activations(self, lanes: int) -> Tensor:
        """Random channels-last (lanes * batch, C, H, W)."""
        channels, size = SITES[self.site]
        shape = (lanes * self.batch, channels, size, size)
        x = torch.randn(shape, device=self.device, dtype=DTYPES[self.dtype])
        return x.contiguous(memory_format=torch.channels_last)

    @property
    def label(self) -> dict[str, Any]:
        """As rows have it."""
        return {"site": self.site, "lanes": self.lanes, "dtype": self.dtype}

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one lane's activations."""
        channels, size = SITES[self.site]
        return self.batch * channels * size**2 * DTYPES[self.dtype].itemsize


def peak_bytes(noun: str, way: str, case: Case) -> float:
    """Memory that a noun's forward and backward take at most."""
    lanes = case.tensor_bytes * case.lanes
    if way == "ours":
        return lanes * _OUR_TENSORS[noun] + _OUR_WORKSPACE
    return lanes / DTYPES[case.dtype].itemsize * _PLAIN_BYTES[noun]


Place = tuple[str, Case | None]
"""A noun and its case; nouns of pixels have no cases."""


def ranked(device: str, lanes: Sequence[int], sites: Sequence[str], batch: int) -> list[Place]:
    """Every place, the most telling first: nouns with a target at the first site, in bf16 with
    every number of lanes; then bf16 before fp32, lanes and sites in the order given."""
    places = [
        (noun, Case(site, count, dtype, device, batch))
        for dtype in ("bf16", "fp32") for count in lanes for noun in NOUNS for site in sites
    ]  # fmt: skip
    aimed = {noun for noun, _ in TARGETS}
    first = [
        (noun, case) for noun, case in places
        if noun in aimed and (case.site, case.dtype) == (sites[0], "bf16")
    ]  # fmt: skip
    return list(dict.fromkeys([*first, *((noun, None) for noun in PIXELS), *places]))


def covering(places: Sequence[Place]) -> list[Place]:
    """The same places; those at the front show every noun and every site, and the nouns with a
    target at the first site before all."""
    with_case = [(noun, case) for noun, case in places if case]
    nouns, sites = list(NOUNS), list(dict.fromkeys(case.site for _, case in with_case))
    longest = range(max(len(nouns), len(sites)))
    wanted = [(noun, sites[0]) for noun, _ in TARGETS]
    wanted += [(nouns[i % len(nouns)], sites[i % len(sites)]) for i in longest]
    front = [next(p for p in with_case if (p[0], p[1].site) == pair) for pair in wanted]
    pixels = [place for place in places if not place[1]]
    return list(dict.fromkeys([*front, *pixels, *places]))


def schedule(
    places: Sequence[Place], plain_time: Callable[[], bool]
) -> Iterator[tuple[str, Place]]:
    """(way, place) in order: eager and ours while `plain_time()`; then `torch.compile`, each place
    after its eager and ours; then what is left."""
    plain = dict.fromkeys((way, place) for place in places for way in WAYS[:2])
    tuned = dict.fromkeys(covering(places))
    while plain or tuned:
        if plain and (plain_time() or not tuned):
            yield _taken(plain, next(iter(plain)))
            continue
        place = _taken(tuned, next(iter(tuned)))
        yield from (_taken(plain, (way, place)) for way in WAYS[:2] if (way, place) in plain)
        yield "compile", place


def _taken(queue: dict, item: Any) -> Any:
    del queue[item]
    return item


def free_memory(device: str) -> float:
    """Bytes that a case may take."""
    if device == "cpu":
        return 0.9 * available_memory()
    gc.collect()
    torch.cuda.empty_cache()
    return 0.9 * torch.cuda.mem_get_info()[0]


def no_room(noun: str, way: str, case: Case | None) -> str:
    """Why a case does not fit the memory, or nothing."""
    needed = peak_bytes(noun, way, case) if case else 0
    if case is None or needed < 1 << 30 or needed <= (free := free_memory(case.device)):
        return ""
    return f"needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
