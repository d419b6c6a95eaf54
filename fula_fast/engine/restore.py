"""Finished cells as the lanes of a wave again, ready to be attacked together.

What training left behind is the stitch and, where batch norm moved, running statistics; the rest is
the donors'.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import FulaError
from ..models import Staged, batchnorm
from ..stitching.stitch import Stitch
from ..study.cell import Cell
from .lane_norms import LaneNorm, lane_copy
from .network import statistics
from .solo import StitchedModel, model_statistics
from .statistics import moves, statistics_of
from .task import WaveTask
from .wave import Wave

State = Mapping[str, Tensor]


def lane_statistics(wave: Wave, number: int) -> dict[str, Tensor]:
    """The running statistics that a lane's model is evaluated with, (C,) each (copies)."""
    lane, network = wave.lanes[number], wave.network
    sites = lane.front_site, lane.end_site
    rows = {"front": 0 if network.shared else number, "tail": number}
    found = statistics_of(network.front, network.tail, *sites, LaneNorm)
    return {name: t[rows[name.partition(".")[0]]].clone() for name, t in found.items()}


@torch.no_grad()
def restored(task: WaveTask, stitches: Mapping[str, State], moved: Mapping[str, State]) -> Wave:
    """The wave of a task's cells from their stored stitches and running statistics, by cell id.

    Every lane has a front of its own here: the cells may come from several waves. The models are
    in the precision of what was trained, float32 or float64, whatever that of the activations was.
    Raises `FulaError` where the statistics of a cell that moved them are not stored.
    """
    starts = {
        cell.id: _stitch(task.front, task.end, cell, stitches[cell.id]) for cell in task.cells
    }
    wave = Wave(
        task.cells, task.front, task.end, starts, 0, dtype=task.parameter_dtype, device=task.device
    )
    network = wave.network
    network.shared = False
    network.front = lane_copy(task.front.to(task.device), len(wave.lanes), wave.dtype)
    parts = {part: statistics(getattr(network, part)) for part in ("front", "tail")}
    for number, lane in enumerate(wave.lanes):
        stored = moved[lane.cell.id]
        if moves(lane.cell) and stored.keys() != lane_statistics(wave, number).keys():
            raise _not_stored(lane.cell)
        for name, tensor in stored.items():
            part, _, own = name.partition(".")
            parts[part][own][number].copy_(tensor)
    return wave


@torch.no_grad()
def restored_model(
    front: Staged, end: Staged, cell: Cell, state: State, moved: State
) -> StitchedModel:
    """The whole model of one cell from its stored stitch and running statistics, in eval mode.

    Donors are copied, in the stitch's precision. Raises `FulaError` where the statistics of a cell
    that moved them are not stored.
    """
    stitch = _stitch(front, end, cell, state)
    dtype = next(iter(state.values())).dtype
    model = StitchedModel(
        front.to(dtype), end.to(dtype), cell.front_site, cell.end_site, stitch.to(dtype)
    )
    own = model_statistics(model)
    if moves(cell) and moved.keys() != own.keys():
        raise _not_stored(cell)
    for name, tensor in moved.items():
        own[name].copy_(tensor)
    return batchnorm.frozen(model)


def _not_stored(cell: Cell) -> FulaError:
    return FulaError(
        f"the running statistics of cell {cell.id} are not stored with it; "
        "run its sweep again, into another folder"
    )


def _stitch(front: Staged, end: Staged, cell: Cell, state: State) -> Stitch:
    shapes = front.site_shapes[cell.front_site - 1], end.site_shapes[cell.end_site - 1]
    rule = cell.protocol
    stitch = Stitch(*shapes, batchnorm=rule.stitch_bn == "both", bias=rule.stitch_bias)
    stitch.load_state_dict({**stitch.state_dict(), **state})  # but for counts of batches
    return stitch
