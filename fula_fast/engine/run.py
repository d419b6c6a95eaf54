"""Run a wave from its task to its outcomes: train, checkpoint every epoch, measure."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..device.allocator import free_memory
from ..device.memory import used_memory
from ..device.mode import EAGER
from ..device.precision import arithmetic
from ..errors import FulaError
from ..models import Staged, content_hash
from ..progress import LaneLoss
from .captured import Captured
from .evaluation import measure
from .modes import Stepper, fuse_of, open_stepper, runner_of
from .network import run_plain
from .profiling import profiled
from .restore import lane_statistics
from .statistics import moves
from .task import Outcome, WaveTask, check_result, non_finite, stitches_of
from .wave import Wave

if TYPE_CHECKING:
    from pathlib import Path

    from ..store.checkpoints import Checkpoints


def run_wave(
    task: WaveTask,
    checkpoints: Checkpoints | None = None,
    wave_id: str = "",
    *,
    profile: Path | None = None,
) -> Iterator[list[Outcome]]:
    """Train and measure all cells of a task as lanes; yields them together.

    With `checkpoints`, the wave's state is kept there under `wave_id` after every epoch, and a
    checkpoint of the same cells is continued: the resumed run ends with the same numbers. A trace
    and a table of time by stage are written into the folder `profile`.

    Where a GPU's memory runs out, the wave is split in two and each half starts anew, or, where its
    lanes take turns, each turn is; lanes do not know of each other, so the results are those of the
    whole. Raises `FulaError` where a single lane does not fit.
    """
    parts = [(task, wave_id)]
    while parts:
        part, name = parts.pop(0)
        outcomes, reason = None, ""
        try:
            outcomes = _run_part(part, checkpoints, name, profile)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(".")[0]
        if outcomes is not None:
            yield outcomes
            if checkpoints is not None:
                checkpoints.drop(name)
            continue
        # Out here the failed wave, its graph and their memory pool are no longer referred to.
        if checkpoints is not None:
            checkpoints.drop(name)  # a resumed run would begin with the wave that did not fit
        free_memory()
        parts = [*_smaller(part, name, reason), *parts]


def _smaller(task: WaveTask, name: str, reason: str) -> list[tuple[WaveTask, str]]:
    """The wave in turns of half the size, or, where none has two lanes, in two."""
    members: dict[int, list[str]] = {}
    for cell in task.cells:
        members.setdefault(task.turns.get(cell.id, 0), []).append(cell.id)
    if len(members) == 1 or max(map(len, members.values())) == 1:
        return _halves(task, name, reason)
    turns = {
        cell: 2 * turn + (2 * place >= len(own))
        for turn, own in members.items()
        for place, cell in enumerate(own)
    }
    task.progress.note(f"{reason}: the wave's lanes take {len(set(turns.values()))} turns")
    return [(replace(task, turns=turns), name)]


def _halves(task: WaveTask, name: str, reason: str) -> list[tuple[WaveTask, str]]:
    count = len(task.cells)
    if count == 1:
        raise FulaError(
            f"cell {task.cells[0].id} alone does not fit the GPU's memory ({reason}); "
            "use a smaller batch_size, or --device cpu"
        )
    task.progress.note(f"{reason}: the wave of {count} lanes is split in two")
    halves = task.cells[: count // 2], task.cells[count // 2 :]
    return [
        (replace(task, cells=cells), f"{name}-{side}")
        for cells, side in zip(halves, "ab", strict=True)
    ]


def _run_part(
    task: WaveTask, checkpoints: Checkpoints | None, wave_id: str, profile: Path | None
) -> list[Outcome]:
    with arithmetic(task.precision):
        return _outcomes(task, checkpoints, wave_id, profile)


def _outcomes(
    task: WaveTask, checkpoints: Checkpoints | None, wave_id: str, profile: Path | None
) -> list[Outcome]:
    started = time.perf_counter()
    front, end = (_on(task.device, donor) for donor in (task.front, task.end))
    task = replace(task, front=front, end=end)
    mode, runner = runner_of(task)
    wave = Wave(
        task.cells, task.front, task.end, stitches_of(task), task.steps,
        dtype=task.dtype, device=task.device, turns=task.turns, runner=runner, fuse=fuse_of(mode),
    )  # fmt: skip
    task.progress.wave_started(len(wave.lanes), task.steps, task.flops)
    stepper = open_stepper(task, wave, mode)
    with profiled(wave.network, profile, f"wave-{wave_id}") as recorder:
        _train(task, wave, stepper, checkpoints, wave_id, recorder)
    seconds = (time.perf_counter() - started) / len(wave.lanes)
    shared = {"train_seconds": seconds, "engine_mode": stepper.mode}
    del stepper  # a graph's memory is free for the measures
    if task.device.type == "cuda":
        wave.network.runner = run_plain  # the kernels have fused it: nothing is worth compiling for
    measured = measure(wave, task)
    return [_outcome(wave, n, shared | measured[n]) for n in range(len(wave.lanes))]


def _on(device: torch.device, donor: Staged) -> Staged:
    """The donor on a GPU as a copy: it stays where it is, for other waves."""
    return donor if device.type == "cpu" else copy.deepcopy(donor).to(device)


def _train(
    task: WaveTask,
    wave: Wave,
    stepper: Stepper | Captured,
    checkpoints: Checkpoints | None,
    wave_id: str,
    recorder: Any = None,
) -> None:
    """All epochs that are not done yet. Steps that can change no result are not taken."""
    if task.stream is None:
        return
    per_epoch = task.stream.steps
    owner = _owner(task, wave) if checkpoints is not None else {}
    first = max(_resumed(wave, checkpoints, wave_id, owner), wave.first_step // per_epoch)
    for epoch in range(first, task.epochs):
        wave.start_epoch()
        start = max(wave.first_step - epoch * per_epoch, 0)
        wave.optimiser.done.fill_(epoch * per_epoch + start)
        began = time.perf_counter()
        for number in stepper.epoch(epoch, start):
            if recorder is not None:
                recorder.step()
            if number == first * per_epoch + start and stepper.mode != EAGER:
                waited = time.perf_counter() - began
                task.progress.note(f"{stepper.mode}: {waited:.1f} s to the first step's end")
            rate = (number - epoch * per_epoch - start + 1) / (time.perf_counter() - began)
            images = rate * task.stream.batch_size * len(wave.lanes)
            task.progress.step(number + 1, images, _memory(task.device))
        if checkpoints is not None:
            checkpoints.save(wave_id, wave.state(), {"epoch": epoch + 1, **owner})
        _show_losses(task, wave)


def _owner(task: WaveTask, wave: Wave) -> dict[str, Any]:
    """What a checkpoint must have been made with: the cells and their turns, both donors and the
    precision."""
    donors = [content_hash(donor) for donor in (task.front, task.end)]
    cells = [lane.cell.id for lane in wave.lanes]
    turns = {"turns": [lane.turn for lane in wave.lanes]} if len(wave.turns) > 1 else {}
    return {"cells": cells, "donors": donors, "precision": task.precision, **turns}


def _resumed(
    wave: Wave, checkpoints: Checkpoints | None, wave_id: str, owner: Mapping[str, Any]
) -> int:
    """Load the wave's checkpoint, if it was made with the same; the epochs that it has
    behind it."""
    found = checkpoints.load(wave_id) if checkpoints is not None else None
    if found is None:
        return 0
    tensors, meta = found
    forms, known = ({n: t.shape for n, t in s.items()} for s in (tensors, wave.state()))
    if meta != {"epoch": meta.get("epoch"), **owner} or forms != known:
        return 0
    wave.load_state(tensors)
    return int(meta["epoch"])


def _memory(device: torch.device) -> int | None:
    """Bytes that this process holds: of the GPU, else of the machine."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else used_memory()


def _show_losses(task: WaveTask, wave: Wave) -> None:
    """Worst and best lane: the one host sync per epoch."""
    losses = wave.loss.tolist()
    finite = [n for n in wave.trained if math.isfinite(losses[n])]
    if finite:
        found = (pick(finite, key=losses.__getitem__) for pick in (max, min))
        task.progress.losses(*(LaneLoss(wave.lanes[n].cell.label, losses[n]) for n in found))


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
    statistics = lane_statistics(wave, number) if moves(lane.cell) else {}
    stitch = wave.bank.lane_state(number)
    return check_result(Outcome(lane.cell, metrics, stitch, statistics, error))
