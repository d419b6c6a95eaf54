"""Self-Accuracy against matrices worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fula_fast.measures.self_accuracy import self_accuracy, with_self_accuracy


@pytest.mark.parametrize(
    ("matrix", "directed", "averaged"),
    [
        ([[9, 1, 1], [1, 9, 1], [1, 1, 9]], 1.0, 1.0),
        ([[1, 9, 1], [1, 1, 9], [9, 1, 1]], 0.0, 0.0),
        # Deep into shallow is easy, the reverse hard: rows 2 and 3 peak left of the diagonal,
        # but the mean of both directions [[9, 6, 5], [6, 8, 6], [5, 6, 7]] peaks on it.
        ([[9, 2, 1], [10, 8, 2], [9, 10, 7]], 1 / 3, 1.0),
        # One tie of two in row 1 (1/2), none in row 2 (1), of three in row 3 (1/3).
        ([[5, 5, 0], [1, 4, 2], [3, 3, 3]], (1 / 2 + 1 + 1 / 3) / 3, None),
        (np.full((4, 4), 0.1), 0.25, 0.25),
        ([[0.3]], 1.0, 1.0),
        # The incomplete row 2 does not count; averaged, rows 1 and 2 are both incomplete.
        ([[9, 1, 2], [np.nan, 1, 5], [9, 1, 3]], 1 / 2, 0.0),
    ],
)
def test_by_hand(matrix, directed: float, averaged: float | None) -> None:
    assert self_accuracy(matrix) == pytest.approx(directed)
    if averaged is not None:
        assert self_accuracy(matrix, averaged=True) == pytest.approx(averaged)


def test_without_a_whole_row_it_is_unknown() -> None:
    assert np.isnan(self_accuracy([[np.nan, 1], [1, np.nan]]))


def test_the_argument_stays_as_it_was() -> None:
    matrix = np.arange(9.0).reshape(3, 3)
    self_accuracy(matrix, averaged=True)
    assert (matrix == np.arange(9.0).reshape(3, 3)).all()


@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_only_square_matrices(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square"):
        self_accuracy(np.ones(shape))


def test_a_random_matrix_against_argmax() -> None:
    matrix = np.random.default_rng(0).random((40, 40)) + 0.3 * np.eye(40)
    hits = [int(np.argmax(row)) == i for i, row in enumerate(matrix)]
    assert self_accuracy(matrix) == pytest.approx(np.mean(hits))


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
        lambda rows: [row | {"end_sites": 5} for row in rows],
        lambda rows: [row for row in rows if row["front_site"] == row["end_site"]],
    ],
    ids=["missing", "failed", "unknown", "twice", "not square", "diagonal"],
)
def test_only_whole_square_matrices_have_numbers(broken) -> None:
    rows = broken(cross_layer(3, 0))
    assert with_self_accuracy(rows) == rows


def test_an_axis_of_the_run_tells_matrices_apart() -> None:
    rows = [*cross_layer(3, 1, dm_stats="stale"), *cross_layer(3, 1, dm_stats="refreshed")]
    assert "self_accuracy" not in with_self_accuracy(rows)[0]
    assert "self_accuracy" in with_self_accuracy(rows, ["dm_stats"])[0]
