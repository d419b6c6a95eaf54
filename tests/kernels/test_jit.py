"""Triton's own path from a call to machine code, without a GPU: see `jit_without_gpu.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

KERNELS = {
    "stats_kernel", "merge_stats_kernel", "normalise_kernel", "sums_kernel",
    "input_gradient_kernel", "stitch_kernel", "fused_gradient_kernel", "weight_gradient_kernel",
    "sum_partials_kernel", "distances_kernel", "gradients_kernel", "linf_kernel", "l2_kernel",
    "augment_kernel", "conv_kernel", "conv_gradient_kernel", "merge_tiles_kernel", "moments_kernel",
}  # fmt: skip


@pytest.mark.slow
def test_every_launch_compiles_for_the_chip():
    script = Path(__file__).with_name("jit_without_gpu.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert set(done.stdout.split()) == KERNELS
