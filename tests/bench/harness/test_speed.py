"""The figures of the README and of the guide are the recorded ones."""

import json
from pathlib import Path

import pytest

from fula_fast.bench.harness.speed import (
    BEGIN,
    END,
    NO_GPU,
    NOTHING,
    WRITTEN,
    headline,
    rewritten,
    section,
)

ROOT = Path(__file__).resolve().parents[3]
HARDWARE = {"cpu": "Chip", "cores": 2, "threads": 2, "load": 0.4}
COMMON = {
    "hardware": HARDWARE, "versions": {"torch": "9.9"}, "command": "measure it",
    "time": "2031-01-02T03:04:05+00:00",
}  # fmt: skip


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.name)
def test_what_is_recorded_is_shown(file):
    text = file.read_text(encoding="utf-8")
    assert text == rewritten(text, WRITTEN[file](ROOT / "bench" / "results")), (
        f"{file.name} is not what bench/results gives: python -m fula_fast.bench.harness.speed"
    )


def test_nothing_recorded(tmp_path):
    assert section(tmp_path) == headline(tmp_path) == NOTHING
    assert rewritten(f"a\n{BEGIN}\nold\n{END}\nb\n", "new") == f"a\n{BEGIN}\nnew\n{END}\nb\n"


def test_a_grid_is_shown_in_hours(tmp_path):
    totals = {
        "ours": {"p20": 3600.0, "p50": 7200.0, "p80": 10800.0, "passes": 1.05},
        "published": {"p20": 72000.0, "p50": 72000.0, "p80": 72000.0, "passes": 4.5},
    }
    totals["vmap"] = totals["ours"]
    rows = [{"name": name, "precision": "fp32", "peak_bytes": 3 * 2**30} for name in totals]
    setting = {"lanes": 36, "width": 32, "batch": 128}
    report = COMMON | {"bench": "grid", "setting": setting, "rows": rows, "totals": totals}
    (tmp_path / "grid-cpu.json").write_text(json.dumps(report))
    text = section(tmp_path)
    assert "36 cells" in text and "width 32, batch 128" in text
    assert "Chip (2 threads), torch 9.9" in text
    assert "| fula_fast | fp32 | 2 (1 … 3) | 1.05 | 3,072 |" in text
    assert "| fp32 | 20 (20 … 20) | 4.50 | 3,072 |" in text
    assert "| `torch.func.vmap` over all cells of an end site, front and targets shared |" in text
    assert text.endswith("`measure it` (2031-01-02)")
    said = headline(tmp_path)
    assert said.startswith(
        "36 stitches, 30 epochs of CIFAR-10 each (ResNet-18 of width 32), on Chip"
    )
    assert "**2 hours; as published, one at a time, 20** (10 times as long)" in said
    report["hardware"] = HARDWARE | {"gpu": "Card"}
    (tmp_path / "grid-gpu.json").write_text(json.dumps(report))
    assert headline(tmp_path) == said.replace("Chip (2 threads)", "Card")


def test_starts_are_shown_cold_and_warm(tmp_path):
    spread = {"p20": 11.0, "p50": 12.0, "p80": 13.0}
    row = {"mode": "compiled", "cold": {"total": 48.02}, "warm": {"total": spread}}
    setting = {"lanes": 36, "width": 16, "batch": 128}
    report = COMMON | {"bench": "first-step", "setting": setting, "rows": [row]}
    (tmp_path / "first-step-cpu.json").write_text(json.dumps(report))
    assert "| compiled | 48 | 12 (11 … 13) |" in section(tmp_path)


def test_precisions_are_compared_in_points(tmp_path):
    names = ("mean_absolute_difference_of_means", "largest_difference", "mean_seed_deviation")
    summary = dict(zip(names, (0.0002, 0.0009, 0.0006), strict=True))
    report = COMMON | {"bench": "precision", "rows": [{}] * 20, "summary": summary}
    (tmp_path / "precision-cpu.json").write_text(json.dumps(report))
    text = section(tmp_path)
    assert "20 sites and methods" in text
    assert all(f"| {points} |" in text for points in ("0.02", "0.09", "0.06"))


def test_attacks_and_kernels_are_shown_as_recorded(tmp_path):
    spread = {"p20": 1.0, "p50": 2.0, "p80": 3.0}
    row = {
        "case": "autoattack-rand, eps 8/255", "images": 32, "correct": 26, "robust": 3,
        "gradients": {"ours": 68, "reference": 52520}, "seconds": {"ours": spread},
        "reference seconds, extrapolated": {"p20": 500.0, "p50": 600.0, "p80": 700.0},
        "speedup": {"ours": 298.6},
    }  # fmt: skip
    report = COMMON | {"benchmark": "attack", "rows": [{"case": "pgd-10"}, row]}
    (tmp_path / "attack-cpu.json").write_text(json.dumps(report))
    figure = {"figure": "cpu augment speed-up, freed memory kept", "value": 23.24, "target": 5.0}
    report = COMMON | {"benchmark": "kernels-cpu", "summary": [figure]}
    (tmp_path / "kernels-cpu.json").write_text(json.dumps(report))
    text = section(tmp_path)
    line = "| 8/255 | 32, 26, 3 | 68 of 52,520 | 2 (1 … 3) | 600 (500 … 700) | 299 |"
    assert line in text and "pgd" not in text
    assert "| augment speed-up, freed memory kept | 23.2 |" in text


def test_agreement_shows_both_sides(tmp_path):
    row = {
        "case": "autoattack-rand, eps 1/255", "images": 128, "correct": 109, "eot": 20, "steps": 100,
        "robust": {"ours": 9, "reference": 10}, "share of flags equal": 127 / 128,
        "share of images equal, savings off": 1.0, "seconds": {"ours": 40.4, "reference": 3600.2},
    }  # fmt: skip
    (tmp_path / "agreement-cpu.json").write_text(
        json.dumps(COMMON | {"benchmark": "agreement", "rows": [row]})
    )
    text = section(tmp_path)
    assert "| 1/255 | 128, 109 | 9, 10 | 99.2 % | 100.0 % | 40, 3,600 |" in text
    assert "EOT 20, 100 iterations" in text


def test_a_lanes_cost_and_whether_a_gpu_has_measured(tmp_path):
    rows = [
        {"lanes": 4, "seconds_per_lane": {"p20": 0.1, "p50": 0.2, "p80": 0.3}, "peak_bytes": 2**30}
    ]
    setting = {"precision": "fp32", "width": 16, "batch": 64}
    report = COMMON | {"bench": "scale", "setting": setting, "rows": rows}
    (tmp_path / "scale-cpu.json").write_text(json.dumps(report))
    text = section(tmp_path)
    assert "| 4 | 200 (100 … 300) | 1,024 |" in text and text.startswith(NO_GPU)
    report = report | {"hardware": HARDWARE | {"gpu": "Card"}}
    (tmp_path / "scale-card.json").write_text(json.dumps(report))
    assert NO_GPU not in section(tmp_path)


def test_streams_are_shown_in_images_per_second(tmp_path):
    rate = {"p20": 1000.4, "p50": 2000.0, "p80": 3000.0}
    busy = COMMON | {"hardware": HARDWARE | {"load": 7.9}}
    report = busy | {"batch": 64, "rows": [{"name": "dali", "images_per_second": rate}]}
    (tmp_path / "data-cpu.json").write_text(json.dumps(report))
    text = section(tmp_path)
    assert "| dali | 2,000 (1,000 … 3,000) |" in text
    assert text.endswith("`measure it` (2031-01-02; a busy machine (load 8))")
    share = {"p20": 0.0001, "p50": 0.00204, "p80": 0.03}
    wave = {"lanes": 4, "width": 16, "precision": "fp32", "mode": "eager"}
    row = {"name": "waiting share, dali from JPEG", "share": share, "wave": wave}
    (tmp_path / "data-cpu.json").write_text(json.dumps(report | {"waiting": [row]}))
    text = section(tmp_path)
    assert "| dali from JPEG | 0.2 (0.01 … 3) |" in text and "wave of 4 lanes" in text


def test_data_beyond_memory_are_shown_by_entries(tmp_path):
    spread = {"p20": 0.001, "p50": 0.002, "p80": 0.003}
    rate = {"p20": 900.0, "p50": 1000.0, "p80": 1100.0}
    row = {
        "entries": 1_300_000, "bytes": 190 << 20, "grown_bytes": -4096, "waiting_share": spread,
        "stream_images_per_second": rate,
    }  # fmt: skip
    report = COMMON | {
        "bench": "large_data",
        "setting": {"lanes": 4, "width": 8, "batch": 16, "image": 224},
        "rows": [row],
        "webdataset": {
            "images": 55_000, "first_seconds": {"p50": 6.51}, "again_seconds": {"p50": 0.0051},
        },
    }  # fmt: skip
    (tmp_path / "large-data-cpu.json").write_text(json.dumps(report))
    text = section(tmp_path)
    assert "| 1,300,000 | 190 | 0 | 0.2 (0.1 … 0.3) | 1,000 (900 … 1,100) |" in text
    assert "55,000 images in WebDataset shards takes 6.5 s the first time, then 5 ms" in text
