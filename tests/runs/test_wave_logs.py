"""Each wave has a log, whoever works on it."""

from __future__ import annotations

import os

import pytest

from fula_fast import FulaError
from fula_fast.cli import commands
from fula_fast.files.atomic import host_name
from fula_fast.progress import Progress
from fula_fast.runs.wave_logs import logged, wave_log
from fula_fast.store import Store


class Told(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def store(tmp_path) -> Store:
    waves = {"id": ["abc", "abd", "x"], "cells": [2, 1, 1]}
    return Store.create(tmp_path / "run", {}, {"waves": waves}, {"id": ["c0", "c1", "c2", "c3"]})


def test_it_goes_on_where_another_left_it_and_the_display_is_told_too(store, capsys):
    told = Told()
    with pytest.raises(KeyboardInterrupt), logged(told, store, "abc", 2, 0) as progress:
        progress.wave_started(2, 80)
        progress.note("split in two")
        raise KeyboardInterrupt("stopped by SIGTERM")
    with logged(told, store, "abc", 2, 1) as progress:
        progress.cell_done({"cell": "c1", "status": "failed", "error": "boom"})
    assert told.notes == ["split in two"]
    with pytest.raises(SystemExit) as ended:
        commands.app(["status", str(store.folder), "--log", "abc"])
    assert ended.value.code == 0
    heads, texts = zip(*(line.split(": ", 1) for line in capsys.readouterr().out.splitlines()))
    assert all(head.endswith(f" UTC, {host_name()}, {os.getpid()}") for head in heads)
    assert texts == (
        "2 cells, 0 done before", "wave: 2 lanes, 80 steps", "split in two",
        "left after 0 s: stopped by SIGTERM", "2 cells, 1 done before", "cell c1 failed: boom",
        "2/2 cells, 1 failed", "done after 0 s",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wave", "words"), [("ab", "of 2 waves' ids"), ("y", "of 0"), ("x", "nobody has begun")]
)
def test_a_log_that_cannot_be_told_says_why(store, wave, words):
    with pytest.raises(FulaError, match=words):
        wave_log(store, wave)
    assert not (store.folder / "logs").exists()
