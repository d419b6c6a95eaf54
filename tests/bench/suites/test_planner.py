"""The benchmark of planning: every form of grid at a small size."""

from __future__ import annotations

import pytest

from fula_fast.bench.suites import planner


@pytest.mark.parametrize("form", planner.FORMS)
def test_a_form_has_about_the_cells_asked_for(form):
    found = planner.planned(form, 10_000, workers=2)
    assert 10_000 <= len(found.lanes) <= 12_000
    assert sum(len(wave.cells) for wave in found.waves) == len(found.lanes)


def test_a_plan_is_timed_and_weighed():
    row = planner.plan_once("seeds", 500, workers=1)
    assert row["cells"] == 648 and row["plan"]["seconds"] > 0 and row["stored_bytes"] > 10_000
