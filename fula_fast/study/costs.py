"""FLOPs of a training step, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..methods import method
from ..methods.staging import SUM
from .cell import Cell
from .facts import DonorFacts


def step_flops(cells: Sequence[Cell], front: DonorFacts, end: DonorFacts) -> int:
    """FLOPs of one training step of a wave, for its whole batch.

    Shared: the front up to the deepest site, the end natively. Per lane: the stitch (forward and
    both gradients) and, where an objective reaches behind the stitch, its tail twice (forward, and
    the gradient of the activations; frozen weights need none); both gradients once for each method
    where those are combined. Stages count by their epochs. Attacked lanes run front, stitch and
    tail twice for every attack step, and the front once for themselves.
    """
    plain = any(cell.alpha == 0 for cell in cells)
    shared = shared_flops(max(cell.front_site for cell in cells), plain, front, end)
    lanes = sum(lane_flops(cell, front, end) for cell in cells)
    return cells[0].protocol.batch_size * (shared + lanes)


def shared_flops(deepest: int, plain: bool, front: DonorFacts, end: DonorFacts) -> int:
    """Per image, what the lanes of a wave share. `deepest`: front site; `plain`: some lane is not
    attacked."""
    if not plain:
        return 0
    return front.flops_between(0, deepest) + sum(end.flops) + end.head_flops


def lane_flops(cell: Cell, front: DonorFacts, end: DonorFacts) -> int:
    """Per image, a lane's own work; of the cell only its sites, objective and attack count."""
    tail = end.flops_between(cell.end_site, end.num_sites) + end.head_flops
    stitch = 2 * _product(front.shapes[cell.front_site - 1], end.shapes[cell.end_site - 1])
    work = stitch + tail  # dm: one forward pass moves the running statistics
    if cell.objective:
        work = _trained(cell, stitch, tail)
    if cell.alpha > 0:
        lead = front.flops_between(0, cell.front_site)
        per_image = 2 * (lead + stitch + tail) * cell.protocol.attack.steps
        work += lead + sum(end.flops) + end.head_flops + int(cell.alpha * per_image)
    return work


def _trained(cell: Cell, stitch: int, tail: int) -> int:
    """A step of training, the mean over the epochs. `stitch`, `tail`: forward passes of these."""
    found = [(s.epochs or 1, _step(cell, s.objective, stitch, tail)) for s in cell.course]
    return sum(epochs * work for epochs, work in found) // sum(epochs for epochs, _ in found)


def _step(cell: Cell, objective: Mapping[str, float], stitch: int, tail: int) -> int:
    backward = 1 if cell.combine == SUM else len(objective)
    reaches = any(method(name).needs_tail for name in objective)
    return (1 + 2 * backward) * stitch + ((1 + backward) * tail if reaches else 0)


def _product(source: tuple[int, ...], target: tuple[int, ...]) -> int:
    """Multiply-adds per image of the stitch, at the smaller resolution."""
    features = [shape[1] if len(shape) == 2 else shape[0] for shape in (source, target)]
    places = [_places(shape) for shape in (source, target)]
    return features[0] * features[1] * min(places)


def _places(shape: tuple[int, ...]) -> int:
    return {1: 1, 2: shape[0]}.get(len(shape), shape[-1] * shape[-2] if len(shape) > 1 else 1)
