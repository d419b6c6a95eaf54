"""The benchmark of many workers: its parts at a tiny size, and the simulation by hand."""

from __future__ import annotations

import json

import pytest

from fula_fast.bench.suites import scale_out


def test_the_folders_cost_of_a_wave(tmp_path):
    table = scale_out.spec_of(tmp_path, 1, 1)
    store, planned = scale_out._run_of(tmp_path / "run", table, 3)
    taken = scale_out._waves(store, planned)
    assert len(taken) == 3 == len(store.done()) and min(taken) > 0


def test_a_simulated_worker_alone_is_never_idle(monkeypatch):
    monkeypatch.setattr(scale_out, "SEEDS", (1,))
    monkeypatch.setattr(scale_out, "WORKERS", (1, 2))
    one, two = scale_out.simulated(1e14, 1.0, 0.0)
    assert one["cells"] == two["cells"] == 324
    assert one["idle_worker_hours"] == pytest.approx(0, abs=1e-12) and one["efficiency"] == 1
    assert two["hours"] == pytest.approx(two["worker_hours"] / 2)
    assert one["hours"] / 2 <= two["hours"] < one["hours"]


@pytest.mark.long
def test_the_suite_writes_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_out, "overhead", lambda: [{"waves": 1, "seconds_a_wave": {"p50": 1}}])
    arguments = ["--only", "measured,overhead", "--epochs", "1", "--seeds", "1", "--rounds", "1"]
    scale_out.main([*arguments, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "scale-out-measured-cpu.json").read_text())
    assert found["command"].endswith("--only measured --epochs 1 --seeds 1 --rounds 1")
    assert [row.get("workers") for row in found["measured"]] == [1, 2, None, None]
    assert all(0 < row["value"]["p50"] <= 1.5 for row in found["measured"][2:])


def test_efficiencies_by_hand():
    rows = scale_out._rows({"one": [100.0], "two": [55.0], "apart": [104.5]}, 72)
    assert [row["seconds"]["p50"] for row in rows[:2]] == [100.0, 55.0]
    assert rows[0]["cells_per_hour"]["p50"] == pytest.approx(2592)
    assert [row["value"]["p50"] for row in rows[2:]] == pytest.approx([100 / 110, 0.95])


def test_a_simulation_says_what_it_was_made_with(tmp_path, monkeypatch):
    rows = [{"waves": 1, "seconds_a_wave": {"p50": 0.5}}, {"seconds_of_a_start": {"p50": 9.0}}]
    monkeypatch.setattr(scale_out, "overhead", lambda: rows)
    monkeypatch.setattr(scale_out, "SEEDS", (1,))
    monkeypatch.setattr(scale_out, "WORKERS", (1,))
    scale_out.main(["--only", "simulated", "--flops-per-s", "1e14", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "scale-out-simulated-cpu.json").read_text())["simulated"]
    assert (found["seconds_a_wave"], found["seconds_of_a_start"]) == (0.5, 9.0)
    assert found["rows"][0]["cells"] == 324 and "simulation" in found["note"]
