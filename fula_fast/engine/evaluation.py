"""Measure all lanes of a trained wave at once, in eval mode; donors run once for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks.columns import attacked_images
from ..errors import not_none
from ..measures.agreement import Agreement
from ..measures.outputs import OutputTable
from ..measures.registry import measure as registered
from ..measures.sites import SiteTable, stitch_columns
from ..pipelines import Batch
from .attacked import attacked_lanes
from .fronts import Fronts
from .lanes import Route, route_of
from .network import Network
from .task import WaveTask
from .wave import Wave


def measure(wave: Wave, task: WaveTask) -> list[dict[str, Any]]:
    """Columns of every lane: on every test set, under attack, and of its stitch.

    Those of the first set have plain names, those of the others the set's name in front.
    """
    found: list[dict[str, Any]] = [{} for _ in wave.lanes]
    for position, (name, batches) in enumerate(task.evaluations.items()):
        columns = _on_set(wave, task, batches())
        prefix = f"{name}_" if position else ""
        for lane, values in zip(found, columns, strict=True):
            lane |= {prefix + key: value for key, value in values.items()}
    for number, robust in enumerate(_robust(wave, task)):
        found[number] |= robust | stitch_columns(wave.bank.lane_state(number), task.measures)
    return found


@torch.no_grad()
def _on_set(wave: Wave, task: WaveTask, batches: Iterator[Any]) -> list[dict[str, Any]]:
    sites = wave.network.native.num_sites
    agreement = Agreement((len(wave.lanes),), task.device)
    outputs = OutputTable(len(wave.lanes), [registered(name) for name in task.measures])
    end_sites = [n.end_site for n in wave.lanes]
    table = SiteTable(end_sites, sites, task.device, task.measures, task.samples)
    routes = [
        route_of(wave.lanes, sites, full=False, to_head=True, only=own)
        for own in wave.turns.values()
    ]
    for batch in batches:
        for part in _parts(batch, wave.shared.batch_size):
            answers = _answers(wave, routes, part, table)
            agreement.add(*answers, part.labels)
            outputs.add(*answers, part.labels)
    values = {name: column.tolist() for name, column in agreement.result().items()}
    return [
        {name: column[number] for name, column in values.items()} | at_sites | answered
        for number, (at_sites, answered) in enumerate(
            zip(table.columns(), outputs.columns(), strict=True)
        )
    ]


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    """Pieces of at most the training batch's size, for which the wave's memory is planned."""
    yield from map(Batch, *(each.split(size) for each in batch))


def _answers(
    wave: Wave, routes: Sequence[Route], part: Batch, table: SiteTable
) -> tuple[Tensor, Tensor]:
    """Logits of all lanes (L, B, classes), in lane order, and of the end donor (B, classes)."""
    network, count = wave.network, len(wave.lanes)
    x = part.images.to(wave.dtype)
    own = x if network.shared else torch.cat([x] * count)
    lanes = list(range(count))
    fronts = network.fronts(own, lanes, "running")
    *targets, end_logits = network.native_evaluation(x)
    for site, g in enumerate(targets, 1):
        table.target(site, g)
    logits = end_logits.new_empty((count, *end_logits.shape))
    for route in routes:
        head, answers = _turn(network, route, fronts, targets, part, table)
        logits[head] = answers
    return logits.float(), end_logits.float()


def _turn(
    network: Network, route: Route, fronts: Fronts, targets: Sequence[Tensor], part: Batch,
    table: SiteTable,
) -> tuple[list[int], Tensor]:  # fmt: skip
    """A turn's lanes, and their logits (n, B, classes). Nothing else of it is kept."""
    flight = network.fly(route, fronts, "running", training=False)
    fronts.forget()
    for site, members, activation in flight.activations:
        table.add(site, members, activation, targets[site - 1], part.index)
    return list(flight.head), not_none(flight.logits)


def _robust(wave: Wave, task: WaveTask) -> list[dict[str, Any]]:
    """Robust columns of every lane whose protocol names an attack; lanes that share its settings
    are attacked together. A lane that failed in training is left out."""
    found: list[dict[str, Any]] = [{} for _ in wave.lanes]
    together: dict[tuple, list[int]] = {}
    for number, lane in enumerate(wave.lanes):
        rule = lane.cell.protocol
        if rule.measures_robustness and int(wave.dead_at[number]) < 0:
            together.setdefault((rule.robust, rule.attack), []).append(number)
    for members in together.values():
        batches = next(iter(task.evaluations.values()))()
        images, labels = attacked_images(batches, task.robust_images)
        rule = wave.lanes[members[0]].cell.protocol
        given = (images, labels, rule.robust, rule.robust_options(task.precision))
        for part in attacked_lanes(wave, (task.front, task.end), members, *given):
            for number, columns, _ in part:
                found[number] = columns
    return found
