"""A recorded step: what a CUDA graph may hold, and everything around the graph."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from fula_fast.device.graphs import CaptureRefused, Recording, Rerun
from fula_fast.engine.captured import Captured
from fula_fast.engine.modes import Stepper
from fula_fast.errors import FulaError
from fula_fast.kernels import backend
from fula_fast.pipelines.decode.dali import dali_installed

from .conftest import WAVES, assert_same, attack, cells, prepared, taken

needs_dali = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resident", "clean"),
        ("resident", "attacked"),
        pytest.param("resident", "first", marks=pytest.mark.slow),
        pytest.param("resident", "random-start", marks=pytest.mark.slow),
        ("reference", "random-start"),
        pytest.param("dali", "clean", marks=needs_dali),
    ],
)
def test_a_recorded_training_equals_the_eager_one(name, kind):
    """Bit for bit, from the first step to the last, whatever the warm-up moves in between."""
    group = cells(WAVES[kind][0], **WAVES[kind][1])
    (task, plain), (_, wave) = (prepared(group, backend=name) for _ in range(2))
    recorded = Captured(task, wave, Rerun())
    assert taken(recorded) == taken(Stepper(task, plain, "eager")) == list(range(6))
    assert_same(wave, plain)
    assert recorded.replays == 6 and recorded.mode == "captured"


@pytest.mark.parametrize("kind", ["clean", "random-start"])
def test_a_recording_begun_at_an_epochs_last_step_equals_the_eager_one(kind):
    """A resumed run, and the phase in which statistics settle, begin where they must; the warm-up
    takes no batch behind the epoch's end."""
    group = cells(WAVES[kind][0], **WAVES[kind][1])
    (task, plain), (_, wave) = (prepared(group, momentum=0.999999999) for _ in range(2))
    assert wave.settling_from == (5 if kind == "clean" else 0)
    recorded = Captured(task, wave, Rerun())
    assert taken(recorded, 0, 2) == taken(Stepper(task, plain, "eager"), 0, 2) == [2, 3, 4, 5]
    assert_same(wave, plain)


class Watched(Rerun):
    """Counts the recordings that are alive when another one is made."""

    def __init__(self):
        self.made, self.alive, self.released = [], [], 0

    def record(self, step, snapshot) -> Recording:
        gc.collect()
        self.alive.append(sum(made() is not None for made in self.made))
        recording = super().record(step, snapshot)
        self.made.append(weakref.ref(recording))
        return recording

    def release(self) -> None:
        self.released += 1
        super().release()


def test_the_second_phase_is_recorded_with_the_first_ones_memory_free():
    """Both hold a step's memory; a wave is packed for one."""
    task, wave = prepared(cells(), momentum=0.999999999)
    watched = Watched()
    assert taken(Captured(task, wave, watched)) == list(range(6))
    assert wave.settling_from == 5 and watched.alive == [0, 0] and watched.released == 1


class Refusing:
    """A device that records nothing."""

    def record(self, step, snapshot) -> Recording:
        raise CaptureRefused("operation not permitted")

    def release(self) -> None:
        """It holds nothing."""


def test_a_refused_capture_is_told_and_the_training_goes_on():
    group, notes = cells(), []
    (task, plain), (_, wave) = (prepared(group) for _ in range(2))
    task.progress.note = notes.append
    stepper = Captured(task, wave, Refusing())
    taken(stepper)
    taken(Stepper(task, plain, "eager"))
    assert_same(wave, plain)
    assert stepper.mode == "compiled" and "operation not permitted" in notes[0]
    with pytest.raises(FulaError, match="'captured' is not possible: .* not permitted"):
        taken(Captured(replace(task, mode="captured"), wave, Refusing()))


KINDS = {
    **WAVES,
    "stitch-bn": ((0.0,), {"stitch_bn": "both", "optimiser": "sgd"}),
    "sgd": ((0.0,), {"optimiser": "sgd", "schedule": "constant"}),
    "bn-eval": ((0.0,), {"bn": "eval", "target_bn": "train"}),
    "target-eval": ((0.5, 0.0), {"target_bn": "eval", "attack": attack()}),
}


@pytest.mark.parametrize(
    ("serving", "kind"),
    [
        ("auto", "clean"),
        ("reference", "attacked"),
        ("auto", "random-start"),
        ("auto", "stitch-bn"),
        *(
            pytest.param("auto", kind, marks=pytest.mark.slow)
            for kind in ("first", "attacked", "sgd", "bn-eval", "target-eval")
        ),
    ],
)
def test_a_step_has_no_host_contact(without_host_contact, serving, kind):
    """All kinds of lanes, a dead one among them; forward, backward, attack and update."""
    group = cells(KINDS[kind][0], **KINDS[kind][1])
    task, wave = prepared(group, momentum=0.999999999)  # so that there are both phases
    with torch.no_grad():
        wave.bank.groups[0].params["weight"].fill_(float("nan"))
    recorded = Captured(task, wave, Rerun())
    with backend.using(serving):
        first = next(recorded.epoch(0))
        for phase in wave.phases:
            recorded._step(phase)
            with without_host_contact():
                recorded._step(phase)
    assert first == 0 and not wave.alive.all()
