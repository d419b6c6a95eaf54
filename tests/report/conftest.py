"""Synthetic results that look like a real study's: the shapes of the curves, not the numbers."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fula_fast.store import Store

METHODS = ("dm", "hint", "slm", "tlm", "fula")
SITES = 9
DEPTH_LOSS = {"dm": 0.5, "hint": 0.09, "slm": 0.045, "tlm": 0.06, "fula": 0.03}


def accuracy(method: str, front: int, end: int, alpha: float, draw: np.random.Generator) -> float:
    middle = np.sin(np.pi * end / (SITES + 1)) ** 2
    value = 0.925 - DEPTH_LOSS[method] * middle - (0.1 * alpha if method in ("slm", "tlm") else 0)
    gap = front - end
    away = 0.07 * max(gap, 0) if method in ("dm", "hint") else 0.01 * max(gap, 0)
    value -= away + 0.11 * max(-gap, 0)
    return float(np.clip(value + draw.normal(0, 0.006), 0.1, 0.99))


def make_row(number: int, **values: Any) -> dict[str, Any]:
    base = {
        "cell": f"{number:016x}", "front": "a", "end": "b", "protocol": "fula-v2", "alpha": 0.0,
        "shortcut": "none", "subset": None, "data_seed": values["seed"], "status": "ok",
        "error": None, "train_seconds": 12.5 + number % 7, "device": "cpu", "precision": "fp32",
        "engine_mode": "compiled", "front_accuracy": 0.921, "end_accuracy": 0.934,
        "front_hash": "0f" * 8, "end_hash": "ab" * 8, "bn": "train", "epochs": 30,
        "front_sites": SITES, "end_sites": SITES, "version_torch": "2.11.0", "loss": 0.31,
        "weighting": "uniform" if values["method"] == "fula" else "",
    }  # fmt: skip
    return base | values


def same_site_rows(alphas: tuple[float, ...] = (0.0,), **fixed: Any) -> Iterator[dict[str, Any]]:
    draw = np.random.default_rng(3)
    grid = product(alphas, METHODS, range(1, SITES + 1), range(3))
    for number, (alpha, method, site, seed) in enumerate(grid):
        value = accuracy(method, site, site, alpha, draw)
        robust = {}
        if len(alphas) > 1:
            robust = {
                "robust_accuracy": float(np.clip(0.45 * (1 - site / 9) + 0.3 * alpha, 0, 1))
                * value,
                "front_robust_accuracy": 0.02,
                "end_robust_accuracy": 0.47,
            }
        yield make_row(
            number, front_site=site, end_site=site, method=method, seed=seed, alpha=alpha,
            accuracy=value, agreement_soft=value - 0.05, **robust, **fixed,
        )  # fmt: skip


def cross_layer_rows() -> Iterator[dict[str, Any]]:
    draw = np.random.default_rng(4)
    grid = product(METHODS, range(1, SITES + 1), range(1, SITES + 1))
    for number, (method, front, end) in enumerate(grid):
        value = accuracy(method, front, end, 0.0, draw)
        yield make_row(
            100_000 + number, front="a", end="a", front_site=front, end_site=end, method=method,
            seed=0, accuracy=value, agreement_soft=value - 0.04,
        )  # fmt: skip


def write_run(folder: Path, rows: list[dict[str, Any]], planned: int = 0) -> Store:
    cells = {"id": [row["cell"] for row in rows] + [f"x{i}" for i in range(planned)]}
    spec = {"name": "synthetic", "data": {"source": "digits", "size": None}, "grid": {"seeds": [0]}}
    waves = {name: [] for name in ("id", "cells", "flops", "front", "end", "rule")}
    plan = {"waves": waves, "notes": ["2 cells were merged"]}
    store = Store.create(folder, spec, plan, cells)
    store.add_launch({"machine": {"cpu": "a processor", "cores": 2}, "command": "fula-fast sweep"})
    if rows:
        store.write("w0", rows)
    store.write_tables()
    return store


@pytest.fixture
def study_rows() -> list[dict[str, Any]]:
    """Same-site cells under two attack shares with three seeds, and a full cross-layer grid."""
    return [*same_site_rows((0.0, 1.0)), *cross_layer_rows()]


def in_browser(page: Path, script: str) -> tuple[Any, str]:
    """What a script returns that a real browser runs at the end of a page, as JSON, and the page as
    it stands then. Skips where there is no browser."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no Chromium here")
    ending = f"document.title = JSON.stringify((() => {{ {script} }})());"
    probe = page.with_name("probe.html")
    text = page.read_text("utf-8")
    start = text.rindex("</body>")
    probe.write_text(f"{text[:start]}<script>{ending}</script>{text[start:]}", "utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", probe.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", shown)[1])), shown
