"""Finished cells as the lanes of a wave again, ready to be attacked together.

What training left behind is the stitch and, where batch norm moved, running statistics; the rest is
the donors'.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import FulaError
from ..stitching.stitch import Stitch
from .lane_norms import LaneNorm, lane_copy
from .network import statistics
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
    starts = {cell.id: _stitch(task, cell, stitches[cell.id]) for cell in task.cells}
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
            raise FulaError(
                f"the running statistics of cell {lane.cell.id} are not stored with it; "
                "run its sweep again, into another folder"
            )
        for name, tensor in stored.items():
            part, _, own = name.partition(".")
            parts[part][own][number].copy_(tensor)
    return wave


def _stitch(task: WaveTask, cell, state: State) -> Stitch:
    shapes = task.front.site_shapes[cell.front_site - 1], task.end.site_shapes[cell.end_site - 1]
    rule = cell.protocol
    stitch = Stitch(*shapes, batchnorm=rule.stitch_bn == "both", bias=rule.stitch_bias)
    stitch.load_state_dict({**stitch.state_dict(), **state})  # but for counts of batches
    return stitch
