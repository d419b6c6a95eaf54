"""What stands beside every figure: hardware, versions, n and spread, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from fula_fast.bench.harness import record


def test_quantiles_of_a_known_sample():
    found = record.quantiles([float(k) for k in range(11)])
    assert found == {"n": 11, "p20": 2.0, "p50": 5.0, "p80": 8.0}


def test_every_step_is_timed_and_warm_up_is_not(monkeypatch):
    clock, calls = iter(range(100)), []
    monkeypatch.setattr(record.time, "perf_counter", lambda: next(clock))
    assert record.seconds_of(calls.append, 4, "cpu", warmup=2) == [1, 1, 1, 1]
    assert calls == [0, 1, 2, 3, 4, 5]


def test_environment_names_no_path_of_this_machine():
    found = record.environment("cpu", "python -m fula_fast.bench.suites.grid")
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["cpu"]
    text = json.dumps(found)
    assert os.getcwd() not in text and sys.prefix not in text


def test_peak_memory_is_that_of_the_block_alone():
    code = """
from fula_fast.bench.harness.record import PeakMemory
import numpy as np
big = np.ones(2**27, dtype=np.uint8)    # before: not counted, and still held
memory = PeakMemory("cpu")
block = np.ones(2**26, dtype=np.uint8)  # 64 MiB
del block
print(memory.bytes() / 2**20)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(answer.stdout) == pytest.approx(64, abs=8)


def test_a_function_runs_in_a_process_of_its_own():
    assert record.isolated(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        record.isolated(int, "no number")


def test_matrix_rate_counts_two_flops_per_product(monkeypatch):
    monkeypatch.setattr(record, "seconds_of", lambda step, count, device, warmup: [0.5] * count)
    assert record.matrix_rate("cpu", torch.float32, 8) == 2 * 8**3 / 0.5


def test_written_json_is_plain(tmp_path):
    path = record.write(tmp_path / "new" / "a.json", {"p50": 1.5})
    assert json.loads(path.read_text()) == {"p50": 1.5}
    with pytest.raises(ValueError, match="JSON"):
        record.write(path, {"p50": float("nan")})


@pytest.mark.gpu
def test_events_time_a_device():
    a = torch.randn(4096, 4096, device="cuda")
    small = record.quantiles(record.seconds_of(lambda _: a[:128] @ a, 10, "cuda", 3))
    large = record.quantiles(record.seconds_of(lambda _: a @ a, 10, "cuda", 3))
    assert 0 < small["p50"] < large["p50"] < 1


@pytest.mark.gpu
def test_peak_memory_of_a_device():
    memory = record.PeakMemory("cuda")
    torch.zeros(2**26, dtype=torch.uint8, device="cuda")
    assert 2**26 <= memory.bytes() <= 2**26 + 2**21
