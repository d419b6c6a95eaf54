"""An experiment tracker hears what a terminal shows, and no more than numbers that are there."""

from __future__ import annotations

import pytest

from fula_fast import FulaError
from fula_fast.progress import LaneLoss, Progress
from fula_fast.runs import tracking
from fula_fast.runs.engines.launch import Launch, Manner
from fula_fast.runs.tracking import Tracked, tracked
from fula_fast.store import Store
from fula_fast.study.resources import Resources
from fula_fast.study.spec import EngineSpec, load_spec

ROW = {
    "cell": "c", "status": "ok", "method": "hint", "front": "a", "front_site": 2, "end": "b",
    "end_site": 3, "accuracy": 0.5, "kappa": float("nan"), "robust_accuracy": None,
}  # fmt: skip


class Kept:
    def __init__(self) -> None:
        self.values, self.closed = [], False

    def log(self, values, step) -> None:
        self.values.append((dict(values), step))

    def close(self) -> None:
        self.closed = True


class Shown(Progress):
    def __init__(self) -> None:
        self.heard = []

    def __getattribute__(self, name):
        if name in vars(Progress) and not name.startswith("_"):
            return lambda *args: self.heard.append((name, args))
        return super().__getattribute__(name)


def test_a_tracker_gets_the_numbers_and_the_display_everything():
    kept, shown, now = Kept(), Shown(), iter([0.0, 0.0, 1.0, 11.0, 11.0])
    progress = Tracked(shown, lambda: kept, clock=lambda: next(now))
    events = [
        ("run_started", (4, 1, 9.0)), ("donor_started", ("a",)), ("donor_epoch", ("a", 1, 2, 0.1)),
        ("donor_done", ("a", 0.9)), ("wave_started", (2, 30, 9.0)), ("step", (1, 100.0, None)),
        ("step", (2, 100.0, None)), ("step", (9, 50.0, 7)),
        ("losses", (LaneLoss("x", 2.0), LaneLoss("y", 1.0))), ("cell_done", (ROW,)),
        ("note", ("words",)),
    ]  # fmt: skip
    for name, arguments in events:
        getattr(progress, name)(*arguments)
    assert shown.heard == events
    assert kept.values == [
        ({"wave/step": 1.0, "wave/images_per_s": 100.0}, 1),
        ({"wave/step": 9.0, "wave/images_per_s": 50.0, "wave/bytes": 7.0}, 1),
        ({"wave/worst_loss": 2.0, "wave/best_loss": 1.0}, 1),
        ({"hint/a.2-b.3/accuracy": 0.5}, 2),
        ({"cells/finished": 2.0}, 2),
    ]
    progress.close()
    assert kept.closed


def test_a_run_without_numbers_opens_no_tracker(tmp_path):
    progress = Tracked(Progress(), lambda: pytest.fail("opened"))
    progress.run_started(3, 0)
    progress.note("refused")
    progress.close()


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with (
        pytest.raises(FulaError, match=r"pip install 'fula-fast\[wandb\]'"),
        tracked(Progress(), "wandb", None, tmp_path),
    ):
        pass


def test_an_unknown_tracker_is_no_missing_package(tmp_path):
    with (
        pytest.raises(FulaError, match="unknown tracker 'wandbb'; did you mean 'wandb'"),
        tracked(Progress(), "wandbb", None, tmp_path),
    ):
        pass


def test_whoever_tells_of_a_run_tells_its_tracker(tmp_path):
    """The starter that waits, else the workers."""
    store = Store.create(tmp_path / "run", {"name": "t"}, {}, {"id": ["c"]})
    for wait in (True, False):
        engine, where = EngineSpec(track="wandb"), Resources("cpu", "fp32", 1 << 30)
        found = Launch(store, where, engine, Manner(wait=wait)).arguments()
        assert ("--track" in found) is not wait


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_the_trackers_own_files(name, tmp_path, spec, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with tracked(Progress(), name, load_spec(spec), tmp_path) as progress:
        progress.run_started(1, 0)
        progress.cell_done(ROW)
    files = [p for p in (tmp_path / "tracking").rglob("*") if p.is_file()]
    assert any(b"hint/a.2-b.3/accuracy" in p.read_bytes() for p in files)


@pytest.fixture
def spec() -> dict:
    return {
        "data": {"source": "digits", "size": 8},
        "donors": {n: {"model": "resnet18", "width": 2} for n in "ab"},
        "grid": {"front": "a", "end": "b", "methods": ["hint"]},
    }
