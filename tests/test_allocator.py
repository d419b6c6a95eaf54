"""Freed memory is kept while asked for: tensors that come again touch no fresh pages."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from fula_fast.allocator import keeping_memory

SIZE = 64 * 2**20
PAGES = SIZE // resource.getpagesize()


def fewest_faults() -> int:
    """Of a tensor made and freed many times: the heap's holes need a few to settle."""
    counts = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(SIZE // 4)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep memory")
def test_kept_memory_is_not_faulted_in_again_and_afterwards_it_is():
    with keeping_memory():
        assert fewest_faults() < PAGES / 100
    assert fewest_faults() > PAGES / 1000  # huge pages take 512 at a time
    with keeping_memory(False):
        assert fewest_faults() > PAGES / 1000


def test_memory_goes_back_after_an_error():
    with pytest.raises(ZeroDivisionError), keeping_memory():
        raise ZeroDivisionError
