"""Which processes count as there: those that can still write."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from fula_fast.files.atomic import is_alive, remove_stale


def _until_ended(pid: int) -> bool:
    deadline = time.time() + 60
    while is_alive(pid) and time.time() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def test_a_process_is_there_until_it_ends():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(child.pid) and is_alive(os.getpid())
    child.communicate(b"\n", timeout=60)
    assert not is_alive(child.pid)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux' /proc")
def test_one_that_ended_and_that_nobody_asked_for_is_not():
    """As a worker is whose starter was killed, in a container whose first process asks for none."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert _until_ended(child.pid)
    os.kill(child.pid, 0)  # its number is still taken
    assert child.wait() == 0


def test_a_number_beyond_all_processes_is_none():
    assert is_alive(2**80)  # no number of this system's: that it is free is not known
    assert not is_alive(2**22 + 7)


def test_a_killed_writer_of_tensors_leaves_nothing_that_is_not_tidied(tmp_path):
    """The library that writes them begins under a name of its own."""
    code = f"""
import os, sys
from pathlib import Path
import safetensors.torch, torch
from fula_fast.files import sealed

def killed(tensors, path, meta):
    (Path(path).parent / ".tmpAbC123").write_bytes(b"half")
    os._exit(9)

safetensors.torch.save_file = killed
sealed.write_tensors(Path({str(tmp_path)!r}) / "t.safetensors", sealed.STITCHES, {{}}, {{}})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert any(tmp_path.rglob(".tmpAbC123"))
    remove_stale(tmp_path)
    assert not list(tmp_path.iterdir())
