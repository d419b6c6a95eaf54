"""The benchmark of first steps starts its processes, and tells cold from warm."""

import json

import pytest

from fula_fast.bench.suites import first_step


@pytest.mark.slow
def test_a_tiny_wave_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(first_step, "modes", lambda device: ("eager",))
    options = "--device cpu --precision fp32 --width 2 --batch 4 --lanes 4 --timed 1 --warmup 1"
    first_step.main([*options.split(), "--image", "8", "--rounds", "2", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("first-step-*.json")
    (row,) = json.loads(file.read_text())["rows"]
    assert row["mode"] == "eager" and row["warm"]["total"]["n"] == 2
    assert row["cold"]["total"] > row["cold"]["first"] > 0
