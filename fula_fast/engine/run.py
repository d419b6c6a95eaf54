"""Run a wave from its task to its outcomes: train, checkpoint every epoch, measure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..measures.agreement import Agreement
from ..robust import attacked_images, robust_columns
from ..task import Outcome, WaveTask, non_finite, stitches_of
from .lanes import route_of
from .modes import Stepper, open_stepper, runner_of
from .packed import PackedWave
from .wave import Wave

if TYPE_CHECKING:
    from ..store import Store


def run_wave(
    task: WaveTask, store: Store | None = None, wave_id: str = "", *, profile: bool = False
) -> Iterator[list[Outcome]]:
    """Train and measure all cells of a task as lanes; yields them together.

    With a `store`, the wave's state is checkpointed under `wave_id` after every epoch, and a
    checkpoint of the same cells is continued: the resumed run ends with the same numbers.
    """
    started = time.perf_counter()
    mode, runner = runner_of(task)
    wave = Wave(
        task.cells, task.front, task.end, stitches_of(task), task.steps,
        dtype=task.dtype, device=task.device, runner=runner,
    )  # fmt: skip
    task.progress.wave_started(len(wave.lanes), task.steps)
    stepper = open_stepper(task, wave, mode)
    _train(task, wave, stepper, store, wave_id)
    seconds = (time.perf_counter() - started) / len(wave.lanes)
    measured = [a | b for a, b in zip(measure(wave, task), robust(wave, task), strict=True)]
    shared = {"train_seconds": seconds, "engine_mode": stepper.mode}
    yield [_outcome(wave, n, shared | measured[n]) for n in range(len(wave.lanes))]


def _train(task: WaveTask, wave: Wave, stepper: Stepper, store: Store | None, wave_id: str) -> None:
    """All epochs that are not done yet. Steps that can change no result are not taken."""
    if task.stream is None:
        return
    per_epoch = task.stream.steps
    first = max(_resumed(wave, store, wave_id), wave.first_step // per_epoch)
    for epoch in range(first, task.epochs):
        wave.start_epoch()
        start = max(wave.first_step - epoch * per_epoch, 0)
        wave.optimiser.done.fill_(epoch * per_epoch + start)
        began = time.perf_counter()
        for number in stepper.epoch(epoch, start):
            rate = (number - epoch * per_epoch - start + 1) / (time.perf_counter() - began)
            task.progress.step(number + 1, rate * task.stream.batch_size * len(wave.lanes))
        if store is not None:
            meta = {"epoch": epoch + 1, "cells": [lane.cell.id for lane in wave.lanes]}
            store.save_checkpoint(wave_id, wave.state(), meta)
        _show_losses(task, wave, (epoch + 1) * per_epoch)


def _resumed(wave: Wave, store: Store | None, wave_id: str) -> int:
    """Load the wave's checkpoint, if it holds these same cells; the epochs that it has behind it."""
    found = store.load_checkpoint(wave_id) if store is not None else None
    if found is None:
        return 0
    tensors, meta = found
    if meta["cells"] != [lane.cell.id for lane in wave.lanes]:
        return 0
    wave.load_state(tensors)
    return int(meta["epoch"])


def _show_losses(task: WaveTask, wave: Wave, done: int) -> None:
    """Worst and best lane: the one host sync per epoch."""
    losses = wave.loss[wave.network.index(tuple(wave.trained))] if wave.trained else wave.loss
    finite = losses[torch.isfinite(losses)]
    if len(finite):
        task.progress.step(done, worst=float(finite.max()), best=float(finite.min()))


def _outcome(wave: Wave, number: int, metrics: dict[str, object]) -> Outcome:
    lane = wave.lanes[number]
    error = None
    if int(wave.dead_at[number]) >= 0:
        terms = wave.terms[number]
        shown = (
            terms[~torch.isnan(terms)].tolist() or terms[lane.end_site - 1 : lane.end_site].tolist()
        )
        error = str(non_finite(float(wave.loss[number]), int(wave.dead_at[number]), shown))
        metrics = {name: metrics[name] for name in ("train_seconds", "engine_mode")}
    elif lane.trained and float(wave.epoch_steps):
        metrics = metrics | {"loss": float(wave.epoch_loss[number] / wave.epoch_steps)}
    return Outcome(lane.cell, metrics, wave.bank.lane_state(number), error)


@torch.no_grad()
def measure(wave: Wave, task: WaveTask) -> list[dict[str, float]]:
    """Every lane's measures on every test set, in eval mode; the native end runs once for all.

    Columns of the first set have plain names, those of the others its name in front.
    """
    found: list[dict[str, float]] = [{} for _ in wave.lanes]
    for position, (name, batches) in enumerate(task.evaluations.items()):
        prefix = f"{name}_" if position else ""
        agreement = Agreement((len(wave.lanes),), task.device)
        sums = torch.zeros(2, len(wave.lanes), dtype=torch.float64, device=task.device)
        for batch in batches():
            for x, y in _parts(batch.images, batch.labels, task.cells[0].protocol.batch_size):
                logits, end_logits, distances = evaluate(wave, x)
                agreement.add(logits, end_logits, y)
                sums += distances
        values = agreement.result() | {"term_stitch": _ratio(sums)}
        for key, column in values.items():
            for lane, value in zip(found, column.tolist(), strict=True):
                lane[prefix + key] = value
    return found


def robust(wave: Wave, task: WaveTask) -> list[dict[str, object]]:
    """Robust columns of every lane whose protocol names an attack; lanes that share its settings
    are attacked together. A lane that failed in training is left out."""
    found: list[dict[str, object]] = [{} for _ in wave.lanes]
    together: dict[tuple, list[int]] = {}
    for number, lane in enumerate(wave.lanes):
        rule = lane.cell.protocol
        if rule.robust != "none" and int(wave.dead_at[number]) < 0:
            together.setdefault((rule.robust, rule.attack), []).append(number)
    for members in together.values():
        batches = next(iter(task.evaluations.values()))()
        images, labels = attacked_images(batches, task.robust_images)
        room = max(_IMAGE_ROOM // (4 * images.numel()), 1)  # adversarial images held at a time
        for start in range(0, len(members), room):
            part = members[start : start + room]
            rule = wave.lanes[part[0]].cell.protocol
            rows = robust_columns(PackedWave(wave, part), partial(_end, wave), images, labels, rule)
            for number, row in zip(part, rows, strict=True):
                found[number] = row
    return found


_IMAGE_ROOM = 2**30


@torch.no_grad()
def _end(wave: Wave, x: Tensor) -> Tensor:
    return wave.network.native_evaluation(x.to(wave.dtype))[-1].float()


def _parts(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of at most the training batch's size, for which the wave's memory is planned."""
    yield from zip(images.split(size), labels.split(size), strict=True)


def _ratio(sums: Tensor) -> Tensor:
    return torch.where(sums[1] > 0, sums[0] / sums[1], 0.0).sqrt()


def evaluate(wave: Wave, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of all lanes (L, B, classes) and of the end donor (B, classes), in lane order, and
    squared distance to, and norm of, the target at each lane's own site (2, L), on images x."""
    network, count = wave.network, len(wave.lanes)
    x = x.to(wave.dtype)
    sites = network.native.num_sites
    own = x if network.shared else x.repeat(count, *[1] * (x.dim() - 1))
    lanes = list(range(count))
    fronts = network.fronts(own, lanes, "running")
    order = {s: [n for n in lanes if wave.lanes[n].front_site == s] for s in fronts}
    route = route_of(wave.lanes, sites, full=False, to_head=True)
    flight = network.fly(route, fronts, order, "running", training=False)
    targets = network.native_evaluation(x)
    sums = torch.zeros(2, count, dtype=torch.float64, device=x.device)
    for site, members, activation in flight.terms:
        here = [n for n in members if wave.lanes[n].end_site == site]
        if len(here) == len(members):  # this entry is the lanes' arrival
            g = targets[site - 1].double()
            h = activation.unflatten(0, (len(members), -1)).double()
            index = network.index(tuple(members))
            sums[0, index] = (h - g).square().flatten(1).sum(1)
            sums[1, index] = g.square().sum()
    logits = torch.empty_like(flight.logits)
    logits[list(flight.head)] = flight.logits
    return logits.float(), targets[-1].float(), sums
