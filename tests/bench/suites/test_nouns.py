"""The first question on a new GPU: no false alarm, and none missed."""

from __future__ import annotations

import pytest
import torch

from fula_fast import kernels
from fula_fast.bench.suites import nouns


@pytest.mark.parametrize(
    ("noun", "seed"), [("lane_norm", 278), ("lane_norm", 292), ("lane_conv", 6), ("lane_conv", 14)]
)
def test_a_sum_that_rounds_to_zero_is_no_fault(noun, seed):
    """With these seeds one element before the ReLU was 1e-8: its gradient is 0 or 1 by rounding."""
    torch.manual_seed(seed)
    found = nouns.errors(getattr(nouns, noun)("16x16"), "fp32", "cpu")
    assert max(found) < 2e-6


def test_a_wrong_element_in_a_thousand_is_a_fault(monkeypatch):
    right = kernels.lane_norm

    def wrong(x, *arguments, **options):
        y, *rest = right(x, *arguments, **options)
        off = torch.where(torch.arange(y.numel()) % 1000 == 0, 1.01, 1.0)
        return (y * off.view_as(y) if x.dtype == torch.float32 else y), *rest

    monkeypatch.setattr(kernels, "lane_norm", wrong)
    assert max(nouns.errors(nouns.lane_norm("4x4"), "fp32", "cpu")) > nouns.TOLERANCE["fp32"]
