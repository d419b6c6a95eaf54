"""Frozen copies of donors in another precision."""

import pytest
import torch
from torch import nn

from fula_fast.engine.lane_norms import cast


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_recurrent_layers_use_their_cast_weights(make):
    """They keep a list of their weights beside, which cuDNN reads."""
    model = make(8, 8, num_layers=2)
    twin = cast(model, torch.bfloat16)
    assert {w.dtype for w in twin._flat_weights} == {torch.bfloat16}
    assert {w.dtype for w in model._flat_weights} == {torch.float32}
    x = torch.randn(3, 2, 8)
    torch.testing.assert_close(twin(x.bfloat16())[0].float(), model(x)[0], rtol=0.05, atol=0.05)


def test_weights_that_need_no_cast_are_shared_and_norms_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    same, half = cast(model, torch.float32), cast(model, torch.bfloat16)
    assert same[0].weight.data_ptr() == model[0].weight.data_ptr()
    assert not same[0].weight.requires_grad
    assert half[0].weight.dtype == torch.bfloat16 and half[1].running_mean.dtype == torch.float32
