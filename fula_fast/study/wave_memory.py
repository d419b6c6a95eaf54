"""Memory of a wave, predicted from shapes before anything is allocated.

During a training step the memory of a wave is what its lanes save for the backward pass, plus what
all lanes share, plus working room:

- A lane that enters at site j saves the stages behind j (`models.saved`), and its stitch's output;
  one whose loss ends at the stitch saves that output alone.
- Shared: both donors' weights, and their copy in another precision; the targets at the sites in
  use (not replicated), the front's activations there, and the largest stage of each donor in
  flight.
- Working room: the backward pass holds `_WORKING` gradient maps of the stage it is in, by when the
  deeper stages have been freed.
- Per lane: weight, gradient, two moments, a number of its own beside each; and the float64 normal
  equations of its closed form, or later what a step takes: `_UPDATING` numbers for each parameter,
  or every gradient that is combined, with what adds them up, and room for as many more: blocks of
  one size fit where others were freed by luck (40 lanes, four gradients: 650 to 1,010 MiB).
- `_LOST` times what lanes save, `_LOST_IN_STEPS` times what their steps take: the allocator loses
  some to rounding and fragments, convolutions take scratch.
- Lanes may take turns (`packing`): then only one turn's lanes save anything at a time. On a
  CPU blocks of one size do not fit where those of another were freed: `_SCATTERED` times the
  largest turn.
- Without compiled kernels autograd keeps what they recompute: `_UNFUSED` times as much per lane.
- Before that, the closed form takes float32 activations of all sites in use; in few rows at a time.
- After it, the test: what a lane's measures keep (`measures.moment_memory.CellMeasures`).
- With attacks, a lane also saves the front up to its own site and owns its targets.
- Where gradients of several methods are combined, all that is saved stays until the last backward
  pass.

Full-width ResNet-18 on 32x32 images at batch 128 in bf16: 270 MiB for a lane that enters at site
1, 2 MiB at site 9.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from ..device.precision import precision_of
from ..measures.moment_memory import CellMeasures
from ..methods import method
from ..methods.staging import SUM
from .cell import Cell
from .facts import DonorFacts, Shape

_WORKING = 3
_LOST = 1.6  # measured: 1.1 to 1.5 on a CPU, 1.35 on an H100
_LOST_IN_STEPS = 2  # measured: up to 1.8 on a CPU, one gradient
_SCATTERED = 2.25  # measured: up to 1.8, 2 to 14 turns
_UNFUSED = 1.75  # measured on a CPU: 1.6 to 1.7
_LAID_OUT = 1.5  # a convolution holds its weights in a layout of its own while it runs
_UPDATING = 5  # an optimiser's step that is not one kernel, in numbers for each parameter
_FIXED = 64 * 2**20
UNMEASURED = CellMeasures()
CLOSED_FORM_ROWS = 32 * 2**20
"""Bytes for the rows of a pair in its closed form, of as many samples at a time as fit."""


@dataclass(frozen=True)
class LaneSites:
    """What decides a lane's memory: its sites, whether it is attacked, the number of its gradients,
    and whether they come through the end's tail."""

    front_site: int
    end_site: int
    attacked: bool
    gradients: int = 1
    tail: bool = True


def lane_of(cell: Cell) -> LaneSites:
    """The memory-relevant part of a cell."""
    gradients = 1 if cell.combine == SUM else max(len(s.objective) for s in cell.course)
    objectives = [name for stage in cell.course for name in stage.objective]
    tail = cell.alpha > 0 or any(method(name).needs_tail for name in objectives)
    return LaneSites(cell.front_site, cell.end_site, cell.alpha > 0, gradients, tail)


class LaneBytes(NamedTuple):
    """Of one lane: `own`, as long as its wave lasts; `kept` by its measures during the test; and
    what it holds while it goes through the end, `training` or `passing` in the test."""

    own: int
    kept: int
    training: int
    passing: int


def lane_bytes(
    lane: LaneSites,
    front: DonorFacts,
    end: DonorFacts,
    batch: int,
    width: int,
    fused: bool = True,
    measured: CellMeasures = UNMEASURED,
) -> LaneBytes:
    """Bytes of one more such lane; `batch` in images, `width` in bytes per element."""
    unit = batch * width
    kept = sum(end.elements(s) for s in range(lane.end_site, end.num_sites + 1))
    passing = int(unit * (kept + _inside(lane, end)) * (1 if fused else _UNFUSED))
    return LaneBytes(
        _stitch_bytes(lane, front, end),
        measured.lane_bytes(_widths(end, lane.end_site), end.classes) if measured.measures else 0,
        _training_bytes(lane, front, end, unit, fused),
        passing,
    )


def _inside(lane: LaneSites, end: DonorFacts) -> int:
    """Elements of the largest stage that a lane passes, per image, without its gradient."""
    return max((end.saved[s - 1] for s in range(lane.end_site + 1, end.num_sites + 1)), default=0)


def lanes_bytes(turns: Sequence[Sequence[int]], device: str = "cpu") -> int:
    """Peak bytes of lanes that take turns, given the sums of their `LaneBytes` turn by turn."""
    own, kept, training, passing = (list(sums) for sums in zip(*turns, strict=True))
    flown = [_flown(sums, device) for sums in (training, passing)]
    return sum(own) + max(flown[0], sum(kept) + flown[1])


def _flown(turns: Sequence[int], device: str) -> int:
    whole = _LOST * sum(turns)
    return int(whole if len(turns) == 1 else min(whole, _scattered(device) * max(turns)))


def _scattered(device: str) -> float:
    return _SCATTERED if device == "cpu" else _LOST


def on_device(memory: int, turns: Sequence[int], device: str) -> int:
    """At most what a wave in those turns needs on `device`, if it was planned with `memory` bytes
    on another one."""
    return int(memory * (_SCATTERED / _LOST if len(turns) > 1 and device == "cpu" else 1))


def turn_room(staying: int, room: int, device: str = "cpu") -> int:
    """The most that the lanes of a turn may hold by flying, in `room` bytes of which all lanes take
    those `staying`."""
    return int((room - staying) / _scattered(device))


def turn_bytes(flying: int, device: str = "cpu") -> int:
    """The room that such a turn needs: the inverse."""
    return ceil(_scattered(device) * flying)


def _training_bytes(
    lane: LaneSites, front: DonorFacts, end: DonorFacts, unit: int, fused: bool
) -> int:
    """`unit`: bytes of an element of all images of a batch."""
    saved = 2 * end.elements(lane.end_site)
    sites = range(lane.end_site, end.num_sites + 1)
    if not lane.tail:  # it passes for its statistics alone
        passing = max(_WORKING * max(end.elements(s) for s in sites), _inside(lane, end))
        return int(unit * (saved + passing) * (1 if fused else _UNFUSED))
    if lane.attacked:
        saved += sum(front.saved[: lane.front_site]) + 4 * front.elements(0)
        saved += sum(end.elements(s) for s in sites)
    peak = 0
    for site in sites:
        saved += end.saved[site - 1] if site > lane.end_site else 0
        peak = max(peak, saved + _WORKING * end.elements(site))
    if lane.gradients > 1:
        peak = saved + _WORKING * max(end.elements(site) for site in sites)
    return int(unit * peak * (1 if fused else _UNFUSED))


def _stitch_bytes(lane: LaneSites, front: DonorFacts, end: DonorFacts) -> int:
    source, target = front.shapes[lane.front_site - 1], end.shapes[lane.end_site - 1]
    rows, columns = _features(source) + 1, _features(target)
    step = _LOST_IN_STEPS * 4 * max(_UPDATING, 2 * lane.gradients + 2) * rows * columns
    return 20 * rows * columns + max(8 * rows * (rows + columns), step)


def _widths(end: DonorFacts, site: int) -> list[int]:
    """Features from a site of the end to its last."""
    return [_features(shape) for shape in end.shapes[site - 1 :]]


def _features(shape: Shape) -> int:
    return shape[1] if len(shape) == 2 else shape[0]


def shared_bytes(
    lanes: Iterable[LaneSites],
    front: DonorFacts,
    end: DonorFacts,
    batch: int,
    width: int,
    measured: CellMeasures = UNMEASURED,
) -> int:
    """Bytes that a wave needs once: images, targets, front activations, the two native passes; or
    what the end's measures keep."""
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
    need = max(training, closed_form)
    if measured.measures:
        need = max(need, measured.shared_bytes(_widths(end, first), end.classes))
    return _FIXED + weights + batch * images + need


def wave_bytes(
    lanes: Sequence[LaneSites],
    front: DonorFacts,
    end: DonorFacts,
    batch: int,
    precision: str,
    fused: bool = True,
    measured: CellMeasures = UNMEASURED,
) -> int:
    """Predicted peak bytes of a wave of `lanes` in one turn, its donors included.

    `fused`: the compiled kernels serve `lane_norm` and `stitch_hint`. `measured`: what its cells
    are measured with.
    """
    width = precision_of(precision).bytes
    each = [lane_bytes(lane, front, end, batch, width, fused, measured) for lane in lanes]
    sums = [sum(column) for column in zip(*each, strict=True)]
    return shared_bytes(lanes, front, end, batch, width, measured) + lanes_bytes([sums])
