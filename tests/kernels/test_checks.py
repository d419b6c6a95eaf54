"""Bad arguments are refused by name, value and rule, before anything runs."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import fula_fast.kernels as K
from fula_fast.errors import FulaError


def _norm(**changes):
    arguments = {
        "x": torch.ones(6, 4, 2, 2), "weight": torch.ones(4), "bias": torch.ones(4),
        "running_mean": torch.zeros(2, 4), "running_var": torch.ones(2, 4), "lanes": 2,
        "training": True, "eps": 1e-5,
    }  # fmt: skip
    return K.lane_norm(**{**arguments, **changes})


def _stitch(**changes):
    arguments = {
        "x": torch.ones(2, 3, 4, 2, 2), "weight": torch.ones(3, 5, 4), "bias": torch.ones(3, 5),
        "x_index": [0, 1, 1], "target": torch.ones(1, 3, 5, 2, 2), "target_index": [0, 0, 0],
    }  # fmt: skip
    return K.stitch_hint(**{**arguments, **changes})


def _conv(**changes):
    arguments = {"x": torch.ones(6, 4, 3, 3), "weight": torch.ones(5, 4, 3, 3), "lanes": 2}
    return K.lane_conv(**{**arguments, **changes})


def _end(**changes):
    arguments = {
        "x": torch.ones(6, 4, 3, 3), "weight": torch.ones(5, 4, 3, 3), "lanes": 2,
        "norm": K.Affine(torch.ones(5), torch.ones(5), 1e-5), "residual": torch.ones(6, 5, 1, 1),
        "target": torch.ones(3, 5, 1, 1),
    }  # fmt: skip
    return K.lane_conv_norm(**{**arguments, **changes})


def _projected(**changes):
    norm = K.Affine(torch.ones(5), torch.ones(5), 1e-5)._replace(
        **{name: changes.pop(name) for name in ("gain", "bias", "eps") if name in changes}
    )
    projection = K.Projection(torch.ones(5, 3, 1, 1), 1, 0, norm)._replace(**changes)
    return _end(residual=torch.ones(6, 3, 1, 1), projection=projection)


def _pgd(**changes):
    image = torch.ones(2, 3)
    arguments = {"x_adv": image, "grad": image, "x_clean": image, "step": 0.1, "eps": 0.1}
    return K.pgd_step(**{**arguments, **changes})


def _augment(**changes):
    draws = torch.zeros(7, dtype=torch.int32)
    arguments = {
        "images": torch.zeros(7, 4, 4, 3, dtype=torch.uint8), "index": torch.tensor([1, 2]),
        "dy": draws, "dx": draws, "flip": torch.zeros(7, dtype=torch.bool), "pad": 1,
    }  # fmt: skip
    return K.augment(**{**arguments, **changes})


def _hint(**changes):
    arguments = {"activations": [torch.ones(6, 4)], "targets": [torch.ones(3, 4)]}
    return K.hint_terms(**{**arguments, **changes})


def _gram(**changes):
    return K.gram(**{"x": torch.ones(3, 2), "y": torch.ones(3, 2), **changes})


ONE = torch.ones
CASES = [
    (_norm, {"x": ONE(6, 4, 2)}, "x.shape = (6, 4, 2): must be (L*B, C, H, W)"),
    (_norm, {"x": ONE(6, 4, 2, 2).int()}, "x.dtype = torch.int32: must be float32, bfloat16"),
    (_norm, {"lanes": 4}, "lanes = 4: must divide the batch axis of x, 6"),
    (_norm, {"lanes": -1}, "lanes = -1: must divide"),
    (_norm, {"weight": ONE(5)}, "weight.shape = (5,): must be (4,) or (2, 4)"),
    (_norm, {"bias": ONE(2, 4)}, "bias.shape = (2, 4): must be (4,), that of weight"),
    (_norm, {"weight": ONE(4).int()}, "weight.dtype = torch.int32: must be a float"),
    (_norm, {"running_var": ONE(4)}, "running_var.shape = (4,): must be (2, 4)"),
    (_norm, {"eps": float("nan")}, "eps = nan: must be finite and at least 0"),
    (_norm, {"residual": ONE(6, 4, 2, 1)}, "residual.shape = (6, 4, 2, 1): must be (6, 4, 2, 2)"),
    (_norm, {"residual": ONE(6, 4, 2, 2).double()}, "residual.dtype = torch.float64: must be"),
    (_norm, {"target": ONE(2, 4, 2, 2)}, "target.shape = (2, 4, 2, 2): must be (3, 4, 2, 2)"),
    (_norm, {"target": ONE(3, 4, 2, 2, device="meta")}, "target.device = meta: must be that of x"),
    (_norm, {"x": ONE(6, 4, 0, 2)}, "training needs at least one value a channel"),
    (_stitch, {"x": ONE(2, 4)}, "x.shape = (2, 4): must be (S, B, C1, H, W), tokens"),
    (_stitch, {"weight": ONE(3, 5, 6)}, "weight.shape = (3, 5, 6): must be (L, C2, 4)"),
    (_stitch, {"bias": ONE(3, 4)}, "bias.shape = (3, 4): must be (3, 5)"),
    (_stitch, {"x_index": [0, 1]}, "len(x_index) = 2: must be the number of lanes, 3"),
    (_stitch, {"x_index": [0, 1, 2]}, "x_index[2] = 2: must lie in 0 ... 1"),
    (_stitch, {"x_index": torch.tensor([0, -1, 1])}, "x_index[1] = -1: must lie in 0 ... 1"),
    (_stitch, {"x_index": ONE(3, device="meta")}, "x_index.device = meta: must be host numbers"),
    (_stitch, {"target_index": [0, 0, 1]}, "target_index[2] = 1: must lie in 0 ... 0"),
    (_stitch, {"target_index": None}, "target_index = None: must be given with its tensor"),
    (_stitch, {"target": ONE(1, 3, 4, 2, 2)}, "target.shape = (1, 3, 4, 2, 2): must be (T, 3, 5"),
    (_stitch, {"target": None, "write": False}, "write = False: must be True where there is no"),
    (_conv, {"x": ONE(6, 4, 2)}, "x.shape = (6, 4, 2): must be (L*B, C1, H, W)"),
    (_conv, {"weight": ONE(5, 4, 3, 1)}, "weight.shape = (5, 4, 3, 1): must be (5, 4, 1, 1)"),
    (_conv, {"weight": ONE(5, 3, 3, 3)}, "weight.shape = (5, 3, 3, 3): must be (5, 4, 3, 3)"),
    (_conv, {"weight": ONE(5, 4, 3, 3).double()}, "weight.dtype = torch.float64: must be that of"),
    (_conv, {"weight": ONE(5, 4, 3, 3).requires_grad_()}, "it has no gradient: detach it"),
    (_conv, {"lanes": 4}, "lanes = 4: must divide the batch axis of x, 6"),
    (_conv, {"stride": 0}, "stride = 0: must be at least 1"),
    (_conv, {"padding": -1}, "padding = -1: must be at least 0"),
    (_conv, {"x": ONE(6, 4, 2, 3)}, "must hold the kernel of 3 with padding 0"),
    (_conv, {"gain": ONE(4)}, "bias = None: gain, bias, mean and var: all of them, or none"),
    (
        _conv,
        dict.fromkeys(("gain", "bias", "mean", "var"), ONE(4)),
        "mean.shape = (4,): must be (2",
    ),
    (_end, {"norm": K.Affine(ONE(4), ONE(5), 0.0)}, "norm.gain.shape = (4,): must be (5,), (C2,)"),
    (_end, {"norm": K.Affine(ONE(5), ONE(5), -1.0)}, "norm.eps = -1.0: must be finite and at"),
    (_end, {"residual": ONE(6, 5, 1, 2)}, "residual.shape = (6, 5, 1, 2): must be (6, 5, 1, 1)"),
    (_end, {"target": ONE(6, 5, 1, 1)}, "target.shape = (6, 5, 1, 1): must be (3, 5, 1, 1)"),
    (_end, {"room": -1}, "room = -1: must be at least 0"),
    (_projected, {"gain": ONE(5).requires_grad_()}, "projection.norm.gain.requires_grad = True"),
    (_projected, {"bias": None}, "projection.norm.bias = None: must be a tensor"),
    (_projected, {"bias": ONE(2, 5)}, "projection.norm.bias.shape = (2, 5): must be (5,)"),
    (_projected, {"weight": ONE(5, 2, 1, 1)}, "weight.shape = (5, 2, 1, 1): must be (5, 3, 1, 1)"),
    (_projected, {"padding": 1}, "projection's output = (6, 5, 3, 3): must be that of y, (6, 5, 1"),
    (
        _end,
        {"projection": K.Projection(ONE(5, 3, 1, 1), 1, 0, None), "residual": None},
        "residual = None: must be what the projection takes",
    ),
    (_pgd, {"grad": ONE(3, 2)}, "grad.shape = (3, 2): must be (2, 3)"),
    (_pgd, {"eps": float("inf")}, "eps = inf: must be finite and at least 0"),
    (_pgd, {"step": -1.0}, "step = -1.0: must be finite and at least 0"),
    (_pgd, {"norm": "l1"}, "norm = 'l1': must be 'linf' or 'l2'"),
    (_augment, {"images": ONE(7, 4, 4, 3)}, "images = torch.float32 (7, 4, 4, 3): must be uint8"),
    (_augment, {"index": ONE(2)}, "index = torch.float32 (2,): must be int32 or int64 (B,)"),
    (_augment, {"dy": torch.zeros(2, dtype=torch.int32)}, "dy.shape = (2,): must be (7,)"),
    (_augment, {"flip": torch.zeros(7)}, "flip.dtype = torch.float32: must be bool"),
    (_augment, {"pad": -1}, "pad = -1: must be at least 0"),
    (_augment, {"markers": ONE(1, 2, 2, 3)}, "marker_index = None: must be given with markers"),
    (_norm, {"lanes": 2.0}, "lanes = 2.0: must be an integer"),
    (_norm, {"eps": "1"}, "eps = '1': must be a number"),
    (_stitch, {"x_index": [0.5, 1, 0]}, "x_index[0] = 0.5: must be an integer"),
    (_stitch, {"x_index": torch.tensor([0, 1.7, 0])}, "x_index[0] = 0.0: must be an integer"),
    (_stitch, {"x_index": [0, "1", 0]}, "x_index[1] = '1': must be an integer"),
    (_stitch, {"x_index": 1}, "x_index = 1: must be a sequence of integers, one a lane"),
    (_stitch, {"x_index": torch.tensor(1)}, "x_index = 1: must be a sequence of integers"),
    (_stitch, {"target_index": [0, None, 0]}, "target_index[1] = None: must be an integer"),
    (_pgd, {"step": None}, "step = None: must be a number"),
    (_hint, {"activations": ONE(6, 4)}, "activations = tensor("),
    (_hint, {"targets": None}, "targets = None: must be a sequence of tensors, one a depth"),
    (_augment, {"pad": 1.0}, "pad = 1.0: must be an integer"),
]

EVERY = {
    _norm: ("x", "weight", "bias", "running_mean", "running_var", "residual", "target"),
    _stitch: ("x", "weight", "bias", "target"),
    _conv: ("x", "weight", "gain", "bias", "mean", "var"),
    _end: ("x", "weight", "residual", "target"),
    _projected: ("gain", "bias"),
    _pgd: ("x_adv", "grad", "x_clean"),
    _augment: ("images", "index", "dy", "dx", "flip", "markers"),
    _gram: ("x", "y"),
}
"""Every argument that must be a tensor."""


@pytest.mark.parametrize("call,changes,message", CASES, ids=lambda c: c if type(c) is str else "")
def test_a_bad_argument_is_named(call, changes, message):
    with pytest.raises(FulaError, match=re.escape(message)):
        call(**changes)


def _strange() -> dict[str, object]:
    """What is no ordinary tensor, by what is said of it."""
    rows = torch.nested.nested_tensor([ONE(2), ONE(3)])
    return {
        " = [1.0]: must be a tensor": [1.0],
        " = array([1.]): must be a tensor": np.ones(1),
        ".layout = torch.sparse_coo: must be torch.strided": ONE(6, 4).to_sparse(),
        ".layout = nested: must be torch.strided": rows,
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_what_is_no_ordinary_tensor_is_named():
    for message, strange in _strange().items():
        for call, names in EVERY.items():
            for name in names:
                with pytest.raises(FulaError, match=re.escape(name + message)):
                    call(**{name: strange})
        for name in ("activations", "targets"):
            with pytest.raises(FulaError, match=re.escape(f"{name}[0]{message}")):
                _hint(**{name: [strange]})


def test_bad_depths_are_named():
    good, target = ONE(6, 4), ONE(3, 4)
    for activations, targets, message in [
        ([good], [], "len(targets) = 0: must be that of activations, 1"),
        ([good], [ONE(3, 5)], "targets[0].shape = (3, 5): must be (B, ...) with (4,) after B"),
        ([good, ONE(5, 4)], [target, target], "len(activations[1]) = 5: must be a multiple"),
        ([good, good.double()], [target] * 2, "activations[1].dtype = torch.float64: must be that"),
    ]:
        with pytest.raises(FulaError, match=re.escape(message)):
            _hint(activations=activations, targets=targets)


def test_good_arguments_pass():
    assert _norm()[0].shape == (6, 4, 2, 2)
    assert _stitch()[1].shape == (3, 3)
    assert _stitch(x_index=torch.tensor([0, 1, 0]))[0].shape == (9, 5, 2, 2)
    assert _stitch(x_index=np.array([0, 1, 0]))[0].shape == (9, 5, 2, 2)
    assert _pgd(step=np.float32(0.1)).shape == (2, 3)
    assert _augment().shape == (2, 3, 4, 4)
    assert K.hint_terms([], []) == []
    with pytest.raises(FulaError, match=re.escape("must be (rows, c1) and (rows, c2)")):
        K.gram(ONE(3, 2), ONE(4, 2))
