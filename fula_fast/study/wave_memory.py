"""Memory of a wave, predicted from shapes before anything is allocated.

During a training step the memory of a wave is what its lanes save for the backward pass, plus what
all lanes share, plus working room:

- Frozen weights need no saved input, so a convolution saves nothing. Each batch norm saves its
  input and each ReLU its output: a ResNet basic block saves four maps, five with a down-sampling
  shortcut. A lane that enters at site j saves the stages behind j, and its stitch's output.
- Shared: both donors' weights, and their copy in another precision; the targets at the sites in
  use (not replicated), the front's activations there, and the largest stage of each donor in flight.
- Working room: the backward pass holds `_WORKING` gradient maps of the stage it is in, by when the
  deeper stages have been freed.
- Per lane: weight, gradient, two moments and the float64 normal equations of its closed form.
- `_MARGIN` on all that: what the allocator loses to rounding and fragments, and the convolutions'
  scratch.
- Without compiled kernels autograd keeps what they recompute: `_UNFUSED` times as much per lane.
- Before that, the closed form takes float32 activations of all sites in use; in few rows at a time.
- With attacks, a lane also saves the front up to its own site and owns its targets.

Full-width ResNet-18 on 32x32 images at batch 128 in bf16: 270 MiB for a lane that enters at site
1, 2 MiB at site 9.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..errors import FulaError
from ..models.layout import Attention, Block, Layer, MaxPool, Norm, Relu, walk
from .cell import Cell
from .facts import DonorFacts, Shape

BYTES = {"fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2}
CPU_SHARE, GPU_SHARE = 0.60, 0.85
_WORKING = 3
_MARGIN = 1.12
_UNFUSED = 1.75  # measured on a CPU: 1.6 to 1.7
_LAID_OUT = 1.5  # a convolution holds its weights in a layout of its own while it runs
_FIXED = 64 * 2**20
CLOSED_FORM_ROWS = 32 * 2**20
"""Bytes for the rows of a pair in its closed form, of as many samples at a time as fit."""
_TOKEN_MAPS, _OTHER_MAPS = 20, 8
_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*")


def budget(amount: str | int, available: int) -> int:
    """Bytes meant by "8GiB", "60%" (of `available` bytes), or a plain number of bytes."""
    found = _AMOUNT.fullmatch(str(amount))
    unit = found[2].lower() if found else None
    if found is None or (unit != "%" and unit not in _UNITS):
        raise FulaError(f"memory '{amount}' is not an amount; write '8GiB', '60%' or bytes")
    if unit == "%" and not 0 < float(found[1]) <= 100:
        raise FulaError(f"memory '{amount}' must lie above 0% and at most at 100%")
    size = float(found[1]) * (available / 100 if unit == "%" else _UNITS[unit])
    if size < 1:
        raise FulaError(f"memory '{amount}' must be positive")
    return int(size)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take on the CPU: free memory, or what a cgroup leaves."""
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1])
    limits = [(_number(root / limit), _number(root / used)) for limit, used in _CGROUPS]
    return min([free, *(limit - (used or 0) for limit, used in limits if limit is not None)])


def used_memory(root: Path = Path("/")) -> int | None:
    """Resident bytes of this process; None where the system has no /proc."""
    statm = root / "proc/self/statm"
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_CGROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def saved_elements(layers: Sequence[Layer], shape: Shape) -> tuple[int, Shape]:
    """Elements per image that `layers` save for their backward pass, and their output shape."""
    saved = 0
    for layer in layers:
        after = walk((layer,), shape).shape
        saved += _layer_saves(layer, shape, after)
        shape = after
    return saved, shape


def _layer_saves(layer: Layer, before: Shape, after: Shape) -> int:
    match layer:
        case Norm(relu=relu):
            return prod(before) + relu * prod(after)
        case Relu():
            return prod(after)
        case MaxPool():  # its input, and int64 indices
            return prod(before) + 4 * prod(after)
        case Block():
            return _block_saves(layer, before)
        case Attention(dim=dim):  # also two attention maps per head of 64 features
            return usual_saved(before) + 2 * max(dim // 64, 1) * before[0] ** 2
    return 0


def _block_saves(block: Block, shape: Shape) -> int:
    """Input and output of each norm and ReLU; the shortcut's norm saves its input."""
    saved, current = 0, shape
    for conv in block.convs:
        current = walk((conv,), current).shape
        saved += 2 * prod(current)
    shortcut = prod(current) if block.shortcut else 0
    return saved + shortcut - (0 if block.relu else prod(current))


def usual_saved(shape: Shape) -> int:
    """Elements saved by a stage of unknown make that ends in `shape`: a transformer block, or a
    residual bottleneck."""
    return (_TOKEN_MAPS if len(shape) == 2 else _OTHER_MAPS) * prod(shape)


@dataclass(frozen=True)
class Lane:
    """What decides a lane's memory: its sites, and whether it is attacked."""

    front_site: int
    end_site: int
    attacked: bool


def lane_of(cell: Cell) -> Lane:
    """The memory-relevant part of a cell."""
    return Lane(cell.front_site, cell.end_site, cell.alpha > 0)


def lane_bytes(
    lane: Lane, front: DonorFacts, end: DonorFacts, batch: int, width: int, fused: bool = True
) -> int:
    """Peak bytes of one more such lane; `batch` in images, `width` in bytes per element."""
    saved = 2 * end.elements(lane.end_site)
    if lane.attacked:
        saved += sum(front.saved[: lane.front_site]) + 4 * front.elements(0)
        saved += sum(end.elements(s) for s in range(lane.end_site, end.num_sites + 1))
    peak = 0
    for site in range(lane.end_site, end.num_sites + 1):
        saved += end.saved[site - 1] if site > lane.end_site else 0
        peak = max(peak, saved + _WORKING * end.elements(site))
    factor = _MARGIN if fused else _MARGIN * _UNFUSED
    return int(factor * batch * width * peak) + _stitch_bytes(lane, front, end)


def _stitch_bytes(lane: Lane, front: DonorFacts, end: DonorFacts) -> int:
    source, target = front.shapes[lane.front_site - 1], end.shapes[lane.end_site - 1]
    rows, columns = _features(source) + 1, _features(target)
    return 16 * rows * columns + 8 * rows * (rows + columns)


def _features(shape: Shape) -> int:
    return shape[1] if len(shape) == 2 else shape[0]


def shared_bytes(
    lanes: Iterable[Lane], front: DonorFacts, end: DonorFacts, batch: int, width: int
) -> int:
    """Bytes that a wave needs once: images, targets, front activations, the two native passes."""
    lanes = list(lanes)
    first = min(lane.end_site for lane in lanes)
    sites = {lane.front_site for lane in lanes}
    targets = sum(end.elements(s) for s in range(first, end.num_sites + 1))
    fronts = sum(front.elements(s) for s in sites)
    passing = 2 * max(d.elements(s) for d in (front, end) for s in range(d.num_sites + 1))
    training = batch * width * (targets + fronts + passing)
    # its front and end run in float32
    closed_form = batch * 4 * (targets + fronts + 2 * passing) + CLOSED_FORM_ROWS
    images = 2 * front.elements(0) * 4
    copies = _LAID_OUT * (4 if width == 4 else 4 + width)
    weights = int(copies * (front.weights + end.weights))
    return _FIXED + weights + batch * images + max(training, closed_form)


def wave_bytes(
    lanes: Sequence[Lane],
    front: DonorFacts,
    end: DonorFacts,
    batch: int,
    precision: str,
    fused: bool = True,
) -> int:
    """Predicted peak bytes of a wave of `lanes`, its donors included.

    `fused`: the compiled kernels serve `lane_norm` and `stitch_hint`.
    """
    width = BYTES[precision]
    each = sum(lane_bytes(lane, front, end, batch, width, fused) for lane in lanes)
    return shared_bytes(lanes, front, end, batch, width) + each
