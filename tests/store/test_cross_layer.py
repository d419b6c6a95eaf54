"""Columns of cross-layer matrices, against NumPy's argmax."""

from __future__ import annotations

import numpy as np
import pytest

from fula_fast.store.cross_layer import with_self_accuracy


def cross_layer(k: int, seed: int, **columns) -> list[dict]:
    """Rows of a k x k matrix of accuracies drawn from `seed`."""
    drawn = np.random.default_rng(seed).random((k, k))
    places = [(i, j) for i in range(1, k + 1) for j in range(1, k + 1)]
    sites = {"front_sites": k, "end_sites": k, "status": "ok", "seed": seed}
    return [
        {"front_site": i, "end_site": j, "accuracy": drawn[i - 1, j - 1], **sites, **columns}
        for i, j in places
    ]


def test_rows_carry_the_numbers_of_their_own_matrix() -> None:
    parts = {(m, s): cross_layer(4, s, method=m) for m, s in [("slm", 1), ("slm", 2), ("tlm", 3)]}
    mixed = [row for rows in zip(*parts.values(), strict=True) for row in rows]
    for row in with_self_accuracy(mixed):
        drawn = np.random.default_rng(row["seed"]).random((4, 4))
        assert row["self_accuracy"] == np.mean(drawn.argmax(1) == range(4))
        assert row["self_accuracy_averaged"] == np.mean((drawn + drawn.T).argmax(1) == range(4))


@pytest.mark.parametrize(
    "broken",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows[:-1], rows[-1] | {"status": "failed"}],
        lambda rows: [*rows[:-1], rows[-1] | {"accuracy": None}],
        lambda rows: [*rows, rows[0]],
        lambda rows: [*rows[:-1], rows[0]],
        lambda rows: [row | {"end_sites": 5} for row in rows],
        lambda rows: [row for row in rows if row["front_site"] == row["end_site"]],
    ],
    ids=["missing", "failed", "unknown", "twice", "one for another", "not square", "diagonal"],
)
def test_only_whole_square_matrices_have_numbers(broken) -> None:
    rows = broken(cross_layer(3, 0))
    assert with_self_accuracy(rows) == rows


def test_an_axis_of_the_run_tells_matrices_apart() -> None:
    rows = [*cross_layer(3, 1, dm_stats="stale"), *cross_layer(3, 1, dm_stats="refreshed")]
    assert "self_accuracy" not in with_self_accuracy(rows)[0]
    assert "self_accuracy" in with_self_accuracy(rows, ["dm_stats"])[0]
