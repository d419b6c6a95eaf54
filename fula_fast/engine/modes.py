"""How a wave's step is run: eager, compiled stage by stage, or captured whole in a CUDA graph.

The mode that really ran stands in every result row. A mode that was asked for and cannot be had is
an error; where `auto` settles for less, or lanes take turns, a note says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from ..device.compiling import compiled
from ..device.mode import CAPTURED, COMPILED, EAGER
from ..study.resources import check_mode, why_not_captured
from .captured import Captured
from .network import Runner, run_plain
from .optimiser import Fuse, unfused
from .task import WaveTask
from .wave import Wave

WORTH_COMPILING = 1e15
"""FLOPs of a wave's training from which compiling pays on a CPU: it saves a thirtieth of the time
(the fused operators are the same in both modes), and takes a minute or more."""

COMPILER_BYTES = 3 * 2**28
"""What a CPU's compiler may take beside a wave: half a GiB was seen for one turn, 0.7 for seven."""

MOST_TURNS = {"cpu": 1, "cuda": 4}
"""Of a wave whose stages are compiled. Each turn has its own shapes, of which a stage may have
`compiling.MOST_SHAPES`, and each takes seconds; and where turns are taken memory is short, of which
a CPU's compiler takes its own."""


class Stepper:
    """Feeds a wave from its stream, one step after another. `mode`: what runs."""

    def __init__(self, task: WaveTask, wave: Wave, mode: str) -> None:
        self.task, self.wave, self.mode = task, wave, mode

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[int]:
        """Take the steps of an epoch; yields each one's number within the training."""
        first = epoch * self.task.batches.steps
        for step, batch in enumerate(self.task.batches.epoch(epoch, start_step), start_step):
            self._step(batch, first + step, epoch, step)
            yield first + step

    def _step(self, batch, number: int, epoch: int, step: int) -> None:
        attacked = None
        self.wave.key_dropout(epoch, batch.index)
        if self.wave.attacked:
            attacked = self.wave.attack(batch, epoch, step)
        self.wave.step(batch.images, batch.labels, number, attacked)


def open_stepper(task: WaveTask, wave: Wave, mode: str) -> Stepper | Captured:
    """The stepper of a wave in the mode that `runner_of` resolved."""
    return Captured(task, wave) if mode == CAPTURED else Stepper(task, wave, mode)


def runner_of(task: WaveTask) -> tuple[str, Runner]:
    """The mode to run and how a stage is run in it.

    `auto`: captured on CUDA; on a CPU compiled where the work pays for the compilation and the
    budget has room for the compiler, else eager.
    A captured step's stages are compiled where asked: a stage is library calls and operators of
    ours, between which little is left to fuse (324 lanes on an H100: 131 ms a step either way).
    Of lanes in more turns than `MOST_TURNS` the stages run plainly.
    """
    mode, turns = _resolved(task), len({task.turns.get(c.id, 0) for c in task.cells})
    compiles = mode == COMPILED or (mode == CAPTURED and task.compile)
    if compiles and turns > MOST_TURNS[task.device.type]:
        task.progress.note(f"stages are not compiled: lanes take {turns} turns, for want of memory")
        return EAGER if mode == COMPILED else mode, run_plain
    return mode, CompiledRunner() if compiles else run_plain


def fuse_of(mode: str) -> Fuse:
    """How chains of elementwise operators are made one kernel in a mode."""
    return unfused if mode == EAGER else compiled


def _resolved(task: WaveTask) -> str:
    place, dropout = task.device.type, task.cells[0].protocol.dropout
    check_mode(task.mode, place, dropout)
    if task.mode != "auto":
        return task.mode
    if place == "cuda":
        reason = why_not_captured(place, dropout)
        if reason:
            task.progress.note(f"{reason}: compiled, not captured")
        return COMPILED if reason else CAPTURED
    if task.flops < WORTH_COMPILING:
        return EAGER
    if task.room is None or task.room >= COMPILER_BYTES:
        return COMPILED
    beside = f"{max(task.room, 0) / 2**30:.1f} GiB that the budget leaves"
    task.progress.note(f"eager: a compiler's {COMPILER_BYTES / 2**30:.2f} GiB exceed the {beside}")
    return EAGER


class CompiledRunner:
    """Each stage through `compiled`, one specialisation per lane count and rule; they
    go with it."""

    def __init__(self) -> None:
        self._stages: dict[int, Callable[[Tensor], Tensor]] = {}

    def __call__(self, stage: nn.Module, x: Tensor) -> Tensor:
        if id(stage) not in self._stages:
            self._stages[id(stage)] = compiled(stage)
        return self._stages[id(stage)](x)
