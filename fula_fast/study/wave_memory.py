"""Memory of a wave, predicted from shapes before anything is allocated.

During a training step the memory of a wave is what its lanes save for the backward pass, plus what
all lanes share, plus working room:

- A lane that enters at site j saves the stages behind j (`models.saved`), and its stitch's output.
- Shared: both donors' weights, and their copy in another precision; the targets at the sites in
  use (not replicated), the front's activations there, and the largest stage of each donor in
  flight.
- Working room: the backward pass holds `_WORKING` gradient maps of the stage it is in, by when the
  deeper stages have been freed.
- Per lane: weight, gradient, two moments and the float64 normal equations of its closed form.
- `_MARGIN` on all that: what the allocator loses to rounding and fragments, and the convolutions'
  scratch.
- Without compiled kernels autograd keeps what they recompute: `_UNFUSED` times as much per lane.
- Before that, the closed form takes float32 activations of all sites in use; in few rows at a time.
- After it, the test: what a lane's measures keep (`measures.moment_memory.CellMeasures`).
- With attacks, a lane also saves the front up to its own site and owns its targets.
- Where gradients of several methods are combined, each has `_ADDING` buffers, and all that is saved
  stays until the last backward pass.

Full-width ResNet-18 on 32x32 images at batch 128 in bf16: 270 MiB for a lane that enters at site
1, 2 MiB at site 9.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..device.precision import precision_of
from ..measures.moment_memory import CellMeasures
from ..methods.staging import SUM
from .cell import Cell
from .facts import DonorFacts, Shape

_WORKING = 3
_MARGIN = 1.12
_UNFUSED = 1.75  # measured on a CPU: 1.6 to 1.7
_LAID_OUT = 1.5  # a convolution holds its weights in a layout of its own while it runs
_ADDING = 2  # a gradient that is combined, and as much again for adding up; measured on a CPU
_FIXED = 64 * 2**20
UNMEASURED = CellMeasures()
CLOSED_FORM_ROWS = 32 * 2**20
"""Bytes for the rows of a pair in its closed form, of as many samples at a time as fit."""


@dataclass(frozen=True)
class LaneSites:
    """What decides a lane's memory: its sites, whether it is attacked, and the number of its
    gradients."""

    front_site: int
    end_site: int
    attacked: bool
    gradients: int = 1


def lane_of(cell: Cell) -> LaneSites:
    """The memory-relevant part of a cell."""
    gradients = 1 if cell.combine == SUM else max(len(s.objective) for s in cell.course)
    return LaneSites(cell.front_site, cell.end_site, cell.alpha > 0, gradients)


def lane_bytes(
    lane: LaneSites,
    front: DonorFacts,
    end: DonorFacts,
    batch: int,
    width: int,
    fused: bool = True,
    measured: CellMeasures = UNMEASURED,
) -> int:
    """Peak bytes of one more such lane; `batch` in images, `width` in bytes per element.

    That of its training, or of its test where its measures keep more.
    """
    stitch = _stitch_bytes(lane, front, end)
    training = _training_bytes(lane, front, end, batch * width, fused)
    if not measured.measures:
        return training + stitch
    passing = sum(end.elements(s) for s in range(lane.end_site, end.num_sites + 1))
    kept = measured.lane_bytes(_widths(end, lane.end_site), end.classes)
    return max(training, int(_MARGIN * (kept + batch * width * passing))) + stitch


def _training_bytes(
    lane: LaneSites, front: DonorFacts, end: DonorFacts, unit: int, fused: bool
) -> int:
    """`unit`: bytes of an element of all images of a batch."""
    saved = 2 * end.elements(lane.end_site)
    if lane.attacked:
        saved += sum(front.saved[: lane.front_site]) + 4 * front.elements(0)
        saved += sum(end.elements(s) for s in range(lane.end_site, end.num_sites + 1))
    peak = 0
    for site in range(lane.end_site, end.num_sites + 1):
        saved += end.saved[site - 1] if site > lane.end_site else 0
        peak = max(peak, saved + _WORKING * end.elements(site))
    if lane.gradients > 1:
        sites = range(lane.end_site, end.num_sites + 1)
        peak = saved + _WORKING * max(end.elements(site) for site in sites)
    factor = _MARGIN if fused else _MARGIN * _UNFUSED
    return int(factor * unit * peak)


def _stitch_bytes(lane: LaneSites, front: DonorFacts, end: DonorFacts) -> int:
    source, target = front.shapes[lane.front_site - 1], end.shapes[lane.end_site - 1]
    rows, columns = _features(source) + 1, _features(target)
    combined = 4 * (_ADDING * lane.gradients + 1) * rows * columns if lane.gradients > 1 else 0
    return 16 * rows * columns + 8 * rows * (rows + columns) + combined


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
    """Predicted peak bytes of a wave of `lanes`, its donors included.

    `fused`: the compiled kernels serve `lane_norm` and `stitch_hint`. `measured`: what its cells
    are measured with.
    """
    width = precision_of(precision).bytes
    each = sum(lane_bytes(lane, front, end, batch, width, fused, measured) for lane in lanes)
    return shared_bytes(lanes, front, end, batch, width, measured) + each
