"""A whole wave, from task to outcomes: equal to solo cells in every column; resumed; profiled."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from fula_fast import engine
from fula_fast.engine import solo
from fula_fast.engine.task import WaveTask
from fula_fast.errors import FulaError
from fula_fast.models import build
from fula_fast.pipelines import Augmentation, ImageSet, evaluation_batches, open_stream, take
from fula_fast.progress import LineProgress
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import Attack, protocol

MEASURES = (
    "terms", "r2", "penultimate", "linear_cka", "unbiased_linear_cka", "rank", "cknna",
    "rsa_cosine_spearman", "jensen_shannon", "disagreement", "kappa",
)  # fmt: skip
SAMPLES = (0, 1, 2, 5, 7, 9, 10, 13, 14, 16, 18, 20, 22, 27, 28, 29)


def donor(seed: int):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=5, input_shape=(3, 8, 8), width=4).eval()


def images(count: int, seed: int) -> ImageSet:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % 5, tuple("abcde"))


def task(cells, epochs=2, **options) -> WaveTask:
    train, test = images(40, 0), images(30, 1)
    return WaveTask(
        cells=cells,
        front=donor(0),
        end=donor(1),
        stream=open_stream(train, batch_size=8, seed=3, augmentation=Augmentation(1, False)),
        dm_images=lambda samples: take(train, 20, 3),
        evaluations={
            "own": partial(evaluation_batches, test, 16),
            "other": partial(evaluation_batches, train, 16),
        },
        epochs=epochs,
        precision="fp64",
        measures=MEASURES,
        samples=SAMPLES,
        robust_images=6,
        **options,
    )


def cells(**options):
    rule = protocol(
        "fula-v2", batch_size=8, epochs=2, attack=Attack(steps=2), dm_samples=20, **options
    )
    grid = [(3, 3, "fula"), (7, 4, "hint"), (9, 9, "tlm"), (2, 5, "slm"), (3, 3, "dm")]
    return [
        Cell("a", "b", i, j, m, {} if m == "dm" else {m: 1.0}, rule, id=f"{m}{i}{j}")
        for i, j, m in grid
    ]


def by_cell(outcomes):
    return {o.cell.id: o for group in outcomes for o in group}


def test_every_column_equals_that_of_the_solo_cell():
    ours = by_cell(engine.run_wave(task(cells(robust="pgd-2"))))
    theirs = by_cell(solo.run_wave(task(cells(robust="pgd-2"))))
    assert ours.keys() == theirs.keys()
    for name, outcome in ours.items():
        expected = theirs[name].metrics
        assert outcome.metrics.keys() ^ expected.keys() <= {"loss"}  # dm: absent, or None
        for column, value in outcome.metrics.items():
            if column not in ("train_seconds", "engine_mode") and not isinstance(value, str):
                assert value == pytest.approx(expected[column], rel=1e-6, nan_ok=True), column
        assert outcome.metrics["engine_mode"] == "eager"
        assert {
            "other_accuracy",
            "terms",
            "r2",
            "linear_cka",
            "stitch_rank",
            "other_cknna",
            "jensen_shannon",
        } <= outcome.metrics.keys()


class Kept:
    """Checkpoints in memory; `stop_after` of them are written, then the run is cut off."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.saved, self.count, self.stop_after = None, 0, stop_after

    def save(self, wave_id, tensors, meta):
        self.saved, self.count = copy.deepcopy((dict(tensors), dict(meta))), self.count + 1
        if self.count == self.stop_after:
            raise KeyboardInterrupt

    def load(self, wave_id):
        return copy.deepcopy(self.saved)

    def drop(self, wave_id):
        self.saved = None


def test_a_resumed_wave_ends_with_the_same_bits():
    whole = by_cell(engine.run_wave(task(cells(), epochs=3), Kept(), "w"))
    store = Kept(stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        list(engine.run_wave(task(cells(), epochs=3), store, "w"))
    assert store.saved[1]["epoch"] == 1
    resumed = by_cell(engine.run_wave(task(cells(), epochs=3), store, "w"))
    assert store.count == 3
    for name, outcome in resumed.items():
        for part, value in outcome.tensors.items():
            assert torch.equal(value, whole[name].tensors[part])
        assert outcome.metrics["accuracy"] == whole[name].metrics["accuracy"]


def test_a_checkpoint_of_other_cells_is_not_continued():
    store = Kept()
    list(engine.run_wave(task(cells()[:2]), store, "w"))
    ours = by_cell(engine.run_wave(task(cells()), store, "w"))
    fresh = by_cell(engine.run_wave(task(cells())))
    for name, outcome in ours.items():
        assert outcome.metrics["accuracy"] == fresh[name].metrics["accuracy"]


def test_a_waves_view_has_rate_memory_and_both_lanes():
    """Every step's line after the first epoch, as `run_wave` itself reports it."""
    lines = []
    shown = LineProgress(lines.append, interval=0)
    group = cells()
    outcomes = by_cell(engine.run_wave(replace(task(group, epochs=2), progress=shown)))
    steps = [line for line in lines if line.startswith("step ")]
    assert all(" images/s, " in line and " GiB" in line for line in steps)
    second = [line for line in steps if " loss " in line]
    assert len(second) == len(steps) // 2
    labels = {c.label for c in group if outcomes[c.id].metrics.get("loss") is not None}
    assert sum(f"({label})" in second[-1] for label in labels) == 2


def test_a_wave_that_runs_out_of_memory_is_split(monkeypatch):
    """The first attempt fails as CUDA does; both halves then give what the whole would have."""
    from fula_fast.engine import run

    plain, seen = run.Wave, []

    def wave(cells, *args, **options):
        seen.append(len(cells))
        if len(cells) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return plain(cells, *args, **options)

    whole = by_cell(engine.run_wave(task(cells(), epochs=1)))
    monkeypatch.setattr(run, "Wave", wave)
    halves = list(engine.run_wave(task(cells(), epochs=1)))
    assert seen == [5, 2, 3]
    assert [len(part) for part in halves] == [2, 3]
    for name, outcome in by_cell(halves).items():
        for part, value in outcome.tensors.items():
            torch.testing.assert_close(value, whole[name].tensors[part], rtol=1e-9, atol=1e-9)


def test_the_checkpoint_of_a_wave_that_was_split_is_gone(monkeypatch):
    """Memory that runs out in the last epoch leaves nothing for a resumed run to begin with."""
    from fula_fast.engine import run

    measured = run.measure

    def measure(wave, task):
        if len(wave.lanes) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return measured(wave, task)

    class Named(Kept):
        def __init__(self):
            super().__init__()
            self.names = set()

        def save(self, name, *rest):
            self.names.add(name)
            super().save(name, *rest)

        def drop(self, name):
            self.names.discard(name)
            super().drop(name)

    monkeypatch.setattr(run, "measure", measure)
    store = Named()
    assert [len(part) for part in engine.run_wave(task(cells(), epochs=1), store, "w")] == [2, 3]
    assert not store.names


def test_a_single_lane_that_does_not_fit_is_an_error(monkeypatch):
    from fula_fast.engine import run

    def wave(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(run, "Wave", wave)
    with pytest.raises(FulaError, match="alone does not fit the GPU's memory"):
        list(engine.run_wave(task(cells()[:1], epochs=1)))
