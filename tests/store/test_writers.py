"""Notes of who works in a run's folder: whose count, and what a run that is cancelled or interrupted
leaves."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fula_fast import stops
from fula_fast.errors import FulaError
from fula_fast.files import sealed
from fula_fast.files.atomic import host_name
from fula_fast.store import writers as module
from fula_fast.store.writers import Writers

NOBODY = 2**22 + 7
"""A number that Linux gives no process."""


@pytest.fixture
def writers(tmp_path: Path) -> Writers:
    (tmp_path / "writers").mkdir()
    return Writers(tmp_path / "writers")


def now() -> str:
    return datetime.now(UTC).isoformat()


def note(writers: Writers, kind=sealed.WRITER, **values) -> Path:
    made = {"host": "elsewhere", "pid": 1, "started": 0.0, "wave": "w"} | values
    path = writers.folder / f"{made['host']}-{made['pid']}.json"
    sealed.write_json(path, kind, made)
    return path


def test_only_notes_of_the_living_count_and_those_of_the_dead_are_removed(writers):
    elsewhere = note(writers)
    newer = note(writers, replace(sealed.WRITER, format=9), pid=2)
    damaged = note(writers, pid=3)
    damaged.write_text("{")
    dead = note(writers, host=host_name(), pid=NOBODY)
    assert [n["pid"] for n in writers.alive()] == [1]
    assert damaged.exists() and dead.exists()  # who only looks changes nothing
    assert [n["pid"] for n in writers.others()] == [1]
    assert set(writers.folder.iterdir()) == {elsewhere, newer}


def test_the_wave_of_a_dead_writer_is_told_once(writers):
    path = note(writers, wave="v")
    assert [writers.left_by(path.name) for _ in range(2)] == ["v", ""]
    path.write_text("{")
    assert writers.left_by(path.name) == "" and not path.exists()


def test_ctrl_c_stays_what_it_is_and_leaves_no_note(writers):
    with pytest.raises(KeyboardInterrupt), writers.present(now()):
        assert len(writers.alive()) == 1
        raise KeyboardInterrupt
    assert not list(writers.folder.iterdir())


def test_a_note_stays_fresh_while_its_writer_works(writers, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.0)
    with writers.present(now()):
        (own,) = writers.folder.iterdir()
        os.utime(own, (0, 0))
        deadline = time.monotonic() + 30
        while own.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - own.stat().st_mtime < 60


def test_who_hears_no_signal_finds_a_cancelled_run_itself(writers, monkeypatch):
    """Before its next wave, before its next batch (`stops`), and at the latest at its end."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    began, asked = now(), (signal.SIGINT, signal.SIGTERM)
    cancelled = pytest.raises(FulaError, match="the run was cancelled at .* --resume goes on")
    before = [signal.signal(number, signal.SIG_IGN) for number in asked]
    try:
        with cancelled, writers.present(began):
            writers.cancel(now())
            time.sleep(0.2)  # nothing ends this
            with pytest.raises(FulaError, match="the run was cancelled"):
                writers.check_wanted(began)
            with pytest.raises(KeyboardInterrupt):
                stops.check()
        stops.check()
    finally:
        for number, handler in zip(asked, before, strict=True):
            signal.signal(number, handler)
