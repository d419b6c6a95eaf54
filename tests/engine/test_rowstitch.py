"""Stitches chosen image by image equal each lane's own."""

from __future__ import annotations

import pytest
import torch

from fula_fast.engine.rowstitch import RowStitch
from fula_fast.stitching.stitch import Stitch

CONV, SMALL, LARGE = (6, 4, 4), (5, 2, 2), (3, 8, 8)
TOKENS, FEWER, VECTOR = (9, 6), (4, 5), (7,)


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (CONV, (5, 4, 4)), (CONV, SMALL), (CONV, LARGE), (TOKENS, (9, 5)), (VECTOR, (4,)),
        (TOKENS, FEWER), (CONV, TOKENS), (TOKENS, CONV), (CONV, VECTOR), (VECTOR, SMALL),
    ],
)  # fmt: skip
def test_each_image_has_its_own_lanes_stitch(source, target, batchnorm, without_host_contact):
    torch.manual_seed(0)
    stitches = [
        Stitch(source, target, batchnorm=batchnorm, bias=bias).double().eval()
        for bias in [not batchnorm] * 3
    ]
    for stitch in stitches:
        for name, tensor in stitch.state_dict().items():
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, dtype=torch.float64)
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    place = torch.tensor([2, 0, 0, 1, 2])
    x = torch.randn(5, *source, dtype=torch.float64, requires_grad=True)
    rows = RowStitch(stitches, torch.float64)
    with without_host_contact():
        y = rows(x, place)
    weights = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    for number, lane in enumerate(place.tolist()):
        one = x[number : number + 1].detach().requires_grad_()
        expected = stitches[lane](one)
        torch.testing.assert_close(y[number : number + 1], expected, rtol=1e-12, atol=1e-12)
        (own,) = torch.autograd.grad((expected * weights[number : number + 1]).sum(), one)
        torch.testing.assert_close(grad[number : number + 1], own, rtol=1e-11, atol=1e-11)
