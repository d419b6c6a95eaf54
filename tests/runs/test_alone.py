"""A process ends with the one that started it, even one that drops SIGTERM."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

CHILD = """
import os, signal, time
from fula_fast.runs.alone import end_with
{handler}
end_with(os.getppid(), patience=1.0)
print(os.getpid(), flush=True)
time.sleep(120)
"""
STARTER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(120)
"""


@pytest.mark.parametrize("handler", ["", "signal.signal(signal.SIGTERM, lambda *_: None)"])
def test_it_ends_with_its_starter(handler):
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER.format(child=CHILD.format(handler=handler))],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = int(starter.stdout.readline())
    assert runs(child)
    starter.kill()
    starter.communicate()  # to the end of the output that the child holds open
    time.sleep(0.5)
    assert not runs(child)


def runs(pid: int) -> bool:
    """Not ended: one that ended and that nobody has asked for yet does not count."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
