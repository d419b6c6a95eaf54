"""Image sets: choosing fewer images, evenly over the classes."""

from __future__ import annotations

import numpy as np
import pytest

from fula_fast.donors.obtain import open_source
from fula_fast.errors import FulaError
from fula_fast.pipelines import ImageSet
from fula_fast.study.donor_spec import DataSpec


def _numbered(labels: list[int]) -> ImageSet:
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ImageSet(images, np.array(labels, dtype=np.int64), ("a", "b", "c"))


def test_evenly_takes_the_first_of_every_class_in_order():
    few = _numbered([0, 0, 0, 0, 1, 2, 2, 1, 1]).evenly(6)
    assert few.images.ravel().tolist() == [0, 1, 4, 5, 6, 7]
    assert few.labels.tolist() == [0, 0, 1, 2, 2, 1]


def test_evenly_fills_up_from_larger_classes_and_never_exceeds_the_count():
    few = _numbered([0, 0, 0, 0, 1, 2]).evenly(5)
    assert np.bincount(few.labels).tolist() == [3, 1, 1]
    whole = _numbered([0, 1, 2])
    assert whole.evenly(3) is whole


def test_a_data_table_limits_both_splits():
    source = open_source(DataSpec(source="digits", train_images=50, test_images=20))
    assert (len(source.train), len(source.test)) == (50, 20)
    assert np.bincount(source.train.labels).tolist() == [5] * 10


def test_made_up_samples_have_no_image_to_leave_out():
    table = DataSpec(source="clustered-noise", options={"shape": [2, 1, 1]}, train_images=5)
    with pytest.raises(FulaError, match="train_images = 5: 'clustered-noise' is made up"):
        open_source(table)
