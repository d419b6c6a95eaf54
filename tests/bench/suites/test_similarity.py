"""The similarity benchmark: equal numbers, what it extrapolates, and its report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fula_fast.bench.harness.workload import Setting
from fula_fast.bench.suites import similarity
from fula_fast.bench.suites.similarity import ImageCounts
from fula_fast.measures.registry import measures

TINY = Setting("cpu", "fp32", width=2, batch=16, lanes=4, timed=1, warmup=1, mode="eager", image=8)
SIZES = ImageCounts(images=32, samples=32, cka_images=32)


def test_the_network_has_eighteen_sites():
    shapes = similarity.plain_network(TINY, 0).site_shapes
    assert len(shapes) == 18 and shapes[0] == (2, 8, 8) and shapes[-1] == (16,)


def test_our_cka_is_the_mean_of_the_batches_written_out():
    row = similarity.measure_cka(TINY, SIZES, "ours")
    pair = [similarity.plain_network(TINY, seed) for seed in (0, 1)]
    sums = np.zeros((3, 18, 18))
    for batch in similarity._batches(TINY, 32):
        sides = []
        for model in pair:
            x, found = batch.images, []
            for site in range(18):
                with torch.no_grad():
                    x = model.run(x, site, site + 1)
                found.append(x.flatten(1).double().numpy())
            sides.append(found)
        for i, x in enumerate(sides[0]):
            for j, y in enumerate(sides[1]):
                sums[:, i, j] += [hsic(x, y), hsic(x, x), hsic(y, y)]
    expected = sums[0] / np.sqrt(sums[1] * sums[2])
    np.testing.assert_allclose(row["matrix"], expected, atol=1e-4)
    apart = np.clip(row["matrix"], 0, 1) - np.clip(expected, 0, 1)
    assert row["error"] == pytest.approx(np.abs(apart).max(), abs=1e-5)


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    n, k, l = len(x), x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    middle = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * k.sum(0) @ l.sum(0)
    return (np.sum(k * l) + middle) / (n * (n - 3))


def test_pytorch_cka_finds_the_same():
    pytest.importorskip("cka")
    ours, theirs = (similarity.measure_cka(TINY, SIZES, w) for w in ("ours", "pytorch-cka"))
    theirs = np.array(theirs["matrix"])
    known = theirs > 0  # it clamps at zero
    np.testing.assert_allclose(np.array(ours["matrix"])[known], theirs[known], atol=1e-3)


def test_the_price_of_a_whole_matrix_follows_from_what_is_timed(monkeypatch):
    taken = iter([9.0, 9.0 + 2 * 9 * 0.25])
    monkeypatch.setattr(similarity, "_seconds", lambda setting, work: next(taken))
    sides = [[torch.rand(8, 2)] * 3] * 2
    found = similarity._price(TINY, "linear_cka", sides, whole=False)
    assert found == pytest.approx(81 * (1.0 + 200 * 0.25))


def test_a_report_has_every_measure_and_figure(tmp_path):
    report = similarity.run(TINY, SIZES, tmp_path, lambda f, *a: f(*a))
    stored = json.loads((tmp_path / "similarity-cpu.json").read_text())
    assert stored["summary"] == report["summary"]
    parts = stored["rows"]["measures"]["parts"]
    assert set(parts) == {"pass", "values", *(m.name for m in measures())}
    assert stored["rows"]["measures"]["seconds"] == pytest.approx(sum(parts.values()))
    (share, *_) = stored["summary"]
    grid = stored["rows"]["grid"]["seconds"]["p50"]
    assert share["value"] == pytest.approx(grid / sum(parts.values()))
    assert share["target"] == pytest.approx(1 / 0.03)
    assert all(row["peak_bytes"] >= 0 for row in stored["rows"].values())
