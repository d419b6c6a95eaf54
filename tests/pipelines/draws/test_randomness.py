"""Keyed randomness: pure functions of (seed, epoch, sample), with the right distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fula_fast.pipelines import Augmentation, draw_epoch
from fula_fast.pipelines.draws.randomness import Purpose, below, permutation, uniform, words

N = 40_000


def _p_value(values: np.ndarray, count: int) -> float:
    return stats.chisquare(np.bincount(values, minlength=count)).pvalue


def test_words_are_numpys_philox_keyed_by_seed_epoch_and_purpose():
    key = np.array([7, (3 + 1) * 256 + Purpose.CROP_X], dtype=np.uint64)
    expected = np.random.Philox(key=key).random_raw(5)
    assert np.array_equal(words(7, 3, Purpose.CROP_X, 5), expected)


def test_numbers_of_a_sample_do_not_depend_on_the_number_of_samples():
    small, large = (draw_epoch(n, 5, 2, Augmentation()) for n in (100, 1000))
    for name in ("dy", "dx", "flip"):
        assert np.array_equal(getattr(small, name), getattr(large, name)[:100])


def test_crops_and_flips_are_uniform_and_independent():
    draw = draw_epoch(N, 0, 0, Augmentation(pad=4))
    assert draw.dy.min() == draw.dx.min() == 0 and draw.dy.max() == draw.dx.max() == 8
    joint = (draw.dy * 9 + draw.dx) * 2 + draw.flip
    assert _p_value(joint, 162) > 1e-4


def test_no_padding_and_no_flip_leave_images_alone():
    draw = draw_epoch(100, 0, 0, Augmentation(pad=0, flip=False))
    assert not draw.dy.any() and not draw.dx.any() and not draw.flip.any()


def test_order_is_a_permutation_with_uniform_places():
    orders = np.array([draw_epoch(8, seed, 1).order for seed in range(8000)])
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(8), (8000, 1)))
    places = [_p_value(orders[:, k], 8) for k in range(8)]
    assert min(places) > 1e-4


def test_streams_of_other_seeds_epochs_and_purposes_are_unrelated():
    base = uniform(words(1, 1, Purpose.CROP_Y, N))
    for other in ((2, 1, Purpose.CROP_Y), (1, 2, Purpose.CROP_Y), (1, 1, Purpose.CROP_X)):
        correlation = np.corrcoef(base, uniform(words(*other, N)))[0, 1]
        assert abs(correlation) < 5 / np.sqrt(N)


def test_uniform_floats_are_uniform_and_below_one():
    values = uniform(words(3, 0, Purpose.MARKER_NOISE, N))
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("bound", [1, 2, 9, 1000])
def test_below_stays_below(bound):
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert below(extremes, bound).tolist() == [0, bound - 1]


def test_permutation_repeats():
    first = permutation(4, 0, Purpose.TAKE, 50)
    assert np.array_equal(first, permutation(4, 0, Purpose.TAKE, 50))
    assert not np.array_equal(first, permutation(5, 0, Purpose.TAKE, 50))
