"""Philox4x32-10: the published test vectors, and the same numbers in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fula_fast.pipelines.draws.philox import normals, philox, philox_tensor, sample_words, uniforms
from fula_fast.pipelines.draws.randomness import Purpose

# Random123's known answers: counter, key, output
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter, key, expected):
    counter, key, expected = _words(counter), tuple(_words(key)), _words(expected)
    assert philox(np.array([counter]), key)[0].tolist() == expected
    ours = philox_tensor(tuple(torch.tensor(c) for c in counter), key)
    assert ours.tolist() == expected


def test_sample_words_are_the_references_at_their_counters():
    index = torch.tensor([0, 7, 2**32 - 1])
    ours = sample_words(index, 10, seed=2**40 + 3, epoch=5, purpose=Purpose.NOISE_TEST)
    key = (3, 2**8)
    for row, i in zip(ours, index.tolist(), strict=True):
        counters = np.array([[block, i, 6, Purpose.NOISE_TEST] for block in range(3)])
        assert row.tolist() == philox(counters, key).ravel()[:10].tolist()


def test_words_do_not_depend_on_the_batch_or_the_count():
    settings = {"seed": 1, "epoch": 0, "purpose": Purpose.NOISE_TRAIN}
    whole = sample_words(torch.arange(50), 64, **settings)
    assert torch.equal(sample_words(torch.tensor([31]), 9, **settings)[0], whole[31, :9])


def test_distributions():
    words = sample_words(torch.arange(500), 200, seed=0, epoch=0, purpose=Purpose.NOISE_TRAIN)
    flat, gauss = uniforms(words), normals(words)
    assert flat.min() >= 0 and flat.max() < 1
    assert stats.kstest(flat.flatten().numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(gauss.flatten().numpy(), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(gauss[:, ::2].flatten(), gauss[:, 1::2].flatten())[0, 1]) < 0.02


def test_the_extreme_words_give_finite_normals():
    words = torch.tensor([[0, 0, 2**32 - 1, 2**32 - 1]])
    assert torch.isfinite(normals(words)).all()
