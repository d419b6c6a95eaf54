"""Self-Accuracy against matrices worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fula_fast.measures.self_accuracy import self_accuracy


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
