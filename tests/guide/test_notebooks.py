"""The guide's notebooks run from their first cell to their last, and are kept without outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fula_fast.guide import make

NOTEBOOKS = sorted((make.HOME / "notebooks").glob("*.ipynb"))
SECONDS = 600  # of a cell, on a machine that does much else


def test_there_are_three_and_each_links_to_those_that_are_there():
    assert len(NOTEBOOKS) == 3
    names = {path.name for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        linked = {part.split(")")[0] for part in text.split("](")[1:]}
        assert linked <= names - {path.name}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_they_are_kept_without_outputs(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_they_run(path, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="pip install ipykernel")
    monkeypatch.setenv("FULA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    ran = client.NotebookClient(notebook, timeout=SECONDS, resources=place).execute()
    shown = [out for cell in ran.cells for out in cell.get("outputs", ())]
    assert any("text/html" in out.get("data", {}) for out in shown)
    assert any("image/png" in out.get("data", {}) for out in shown)
    if keep := os.environ.get("FULA_KEEP_NOTEBOOKS"):  # to look at them
        nbformat.write(ran, Path(keep) / path.name)
