"""Freed memory is kept while asked for: tensors that come again touch no fresh pages."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from fula_fast.device.allocator import keeping_memory

# In a process of its own: what a heap has kept before changes what it does.
PROGRAM = """
import json, resource, torch
from fula_fast.device.allocator import keeping_memory

def fewest_faults():  # of a tensor made and freed many times: holes need a few to settle
    counts = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)

usual = fewest_faults()
with keeping_memory(False):
    unwanted = fewest_faults()
with keeping_memory():
    with keeping_memory():
        pass
    kept = fewest_faults()  # the inner one has not ended it
print(json.dumps([usual, unwanted, kept]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep memory")
def test_kept_memory_is_not_faulted_in_again():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    usual, unwanted, kept = json.loads(done.stdout)
    assert kept < 10
    assert min(usual, unwanted) > 30  # 64 MB are 16,384 pages, or 32 huge ones


def test_memory_goes_back_after_an_error():
    with pytest.raises(ZeroDivisionError), keeping_memory():
        raise ZeroDivisionError
