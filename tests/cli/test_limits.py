"""Where a machine or a user refuses: one line, the right exit code, files as the system asks for."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path

import pytest

from fula_fast import FulaError, load, sweep

from .test_newcomer import TINY

UNKNOWN = (
    "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--",
)  # fmt: skip
"""A user that the system does not know; may read everything, as this Python's folder may be root's
own, and write nothing."""
unknown = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root becomes another user, by setpriv",
)


def started(*arguments: object, before: tuple[str, ...] = (), **how) -> subprocess.Popen:
    command = [*before, sys.executable, "-m", "fula_fast", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{**pipes, **how})


def ended(*arguments: object, **how) -> tuple[int, str]:
    """The exit code, and what was said on standard error."""
    process = started(*arguments, **how)
    said = process.communicate(timeout=300)[1]
    assert "Traceback" not in said, said
    return process.returncode, said


def one_line(said: str) -> bool:
    return said.startswith("error: ") and said.count("\n") == 1


@pytest.fixture
def spec(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("way", ["list", "plan"])
def test_an_output_that_is_full_or_closed(spec, way):
    command = {"list": ("reproduce", "list"), "plan": ("sweep", spec, "--dry-run")}[way]
    with open("/dev/full", "w") as full:
        code, said = ended(*command, stdout=full)
    assert code == 2 and one_line(said) and "No space left" in said
    code, said = ended(*command, stdout=None, preexec_fn=partial(os.close, 1))
    assert (code, said) == (0, "")


@pytest.mark.slow
def test_an_output_whose_reader_went_away():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        code, said = ended("reproduce", "list", stdout=gone)
    assert code == 2 and one_line(said) and "Broken pipe" in said


@pytest.mark.slow
@unknown
def test_a_user_whom_the_system_does_not_know(spec, tmp_path):
    """Without a name, a group or a home: one line says what to set, and with it the run goes."""
    tmp_path.chmod(0o777)
    bare = {"PATH": os.environ["PATH"], "LANG": "C", "MPLCONFIGDIR": str(tmp_path)}
    command = "sweep", spec, "--out", tmp_path / "run"
    code, said = ended(*command, before=UNKNOWN, env=bare, cwd=tmp_path)
    assert code == 2 and said.splitlines()[-1].startswith("error: ") and "set FULA_CACHE" in said
    code, said = ended(
        *command, "--resume", before=UNKNOWN, env=bare | {"FULA_CACHE": str(tmp_path)}, cwd=tmp_path
    )
    assert code == 0, said
    assert len(load(tmp_path / "run").rows) == 1


@pytest.mark.slow
@unknown
def test_a_cache_that_may_not_be_written(spec, tmp_path):
    """One line names it."""
    tmp_path.chmod(0o777)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o555)
    given = os.environ | {"FULA_CACHE": str(cache), "MPLCONFIGDIR": str(tmp_path)}
    command = "sweep", spec, "--out", tmp_path / "run"
    code, said = ended(*command, before=UNKNOWN, env=given, cwd=tmp_path)
    assert code == 2 and one_line(said[said.index("error: ") :]) and f"'{cache}" in said


@pytest.mark.slow
def test_memory_that_the_system_does_not_give(spec, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))

    code, said = ended("sweep", spec, "--out", tmp_path / "run", preexec_fn=limit)
    assert code == 2 and one_line(said[said.index("error: ") :])


@pytest.mark.parametrize("mask, file, folder", [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_new_files_follow_the_umask(tmp_path, spec, mask, file, folder, monkeypatch, without_plots):
    """Of the run, of donors and of the cache of decoded images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(mask)
    try:
        sweep(
            spec,
            out=tmp_path / "run",
            overrides={"donors.a.untrained": False, "donors.a.epochs": 0},
        )
    finally:
        os.umask(before)
    made = [p for top in ("run", "cache") for p in (tmp_path / top).rglob("*")]
    assert any(p.suffix == ".safetensors" for p in made)
    modes = {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in made}
    assert modes == {(False, file), (True, folder)}


TINY_SPEC = tomllib.loads(TINY)
LONG = TINY.replace("epochs = 1", "epochs = 4000")


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_by_the_system_is_as_ctrl_c(tmp_path, number, code):
    """A checkpoint, how to go on, and the exit code of the signal."""
    spec, run = tmp_path / "long.toml", tmp_path / "run"
    spec.write_text(LONG)
    process = started("sweep", spec, "--out", run)
    end = time.monotonic() + 600
    while not list(run.glob("checkpoints/*.safetensors")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"stopped by {number.name}; ") and "--resume" in last
    assert list(run.glob("checkpoints/*.safetensors")) and not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "../out", "/out", ".", ""])
def test_names_that_are_no_folders_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FulaError, match="name"):
        sweep(TINY_SPEC | {"name": name})
    assert not list(tmp_path.iterdir()) and not (tmp_path.parent / "out").exists()


def test_cells_that_a_spreadsheet_would_run_are_quoted(tmp_path, without_plots):
    names = "=cmd|' /C calc'!A0", "@sum"
    donors = dict(zip(names, TINY_SPEC["donors"].values(), strict=True))
    grid = {**TINY_SPEC["grid"], "front": [names[0]], "end": [names[1]]}
    try:
        sweep({**TINY_SPEC, "donors": donors, "grid": grid}, out=tmp_path / "run")
    except FulaError as error:
        assert re.search(r"name", str(error))
        return
    text = (tmp_path / "run/results.csv").read_text()
    assert not re.search(r'(^|,)"?[=@+]', text, re.M)
