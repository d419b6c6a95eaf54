"""The reference against PyTorch's own layers, written-out loops, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fula_fast.kernels as K
from fula_fast.errors import FulaError
from fula_fast.kernels import backend


@pytest.fixture(autouse=True)
def reference():
    """Every call below is the reference's."""
    with backend.using("reference"):
        yield


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_lane_norm_is_a_batch_norm_a_lane(maker, training, relu):
    make = maker()
    lanes, samples, channels = 3, 4, 5
    x, residual = (make(lanes * samples, channels, 3, 2) for _ in range(2))
    weight, bias, target = make(channels), make(channels), make(samples, channels, 3, 2)
    mean, var = make(lanes, channels), make(lanes, channels).abs() + 0.5
    y, got_mean, got_var, dist2 = K.lane_norm(
        x, weight, bias, mean, var,
        lanes=lanes, training=training, eps=1e-5, residual=residual, relu=relu, target=target,
    )  # fmt: skip
    for lane in range(lanes):
        part = slice(lane * samples, (lane + 1) * samples)
        want = F.batch_norm(x[part], mean[lane].clone(), var[lane].clone(), weight, bias, training)
        want = want + residual[part]
        want = want.relu() if relu else want
        torch.testing.assert_close(y[part], want)
        torch.testing.assert_close(dist2[lane], (want - target).square().sum((1, 2, 3)))
    if training:
        each = x.view(lanes, samples, channels, -1).transpose(1, 2).flatten(2)
        torch.testing.assert_close(got_mean, each.mean(2))
        torch.testing.assert_close(got_var, each.var(2, correction=0))


def test_lane_norm_takes_weights_by_lane(maker):
    make = maker()
    x, weight, bias = make(6, 4, 2, 2), make(2, 4), make(2, 4)
    stats = make(2, 4), make(2, 4).abs()
    whole, *_ = K.lane_norm(x, weight, bias, *stats, lanes=2, training=True, eps=1e-3)
    for lane in range(2):
        part = slice(3 * lane, 3 * lane + 3)
        one = F.batch_norm(x[part], None, None, weight[lane], bias[lane], True, eps=1e-3)
        torch.testing.assert_close(whole[part], one)


def test_lane_norm_gradients_are_those_of_finite_differences(maker):
    make = maker()
    target, stats = make(3, 2, 2, 1), (make(2, 2), make(2, 2))

    def call(x, weight, bias, residual):
        y, _, _, dist2 = K.lane_norm(
            x, weight, bias, *stats,
            lanes=2, training=True, eps=1e-3, residual=residual, relu=True, target=target,
        )  # fmt: skip
        return y, dist2

    inputs = [make(6, 2, 2, 1, grad=True), make(2, grad=True), make(2, grad=True)]
    assert torch.autograd.gradcheck(call, [*inputs, make(6, 2, 2, 1, grad=True)])


@pytest.mark.parametrize("kind", ["maps", "tokens", "vectors"])
def test_stitch_hint_is_a_convolution_or_a_linear_layer(maker, kind):
    make = maker()
    fronts = {"maps": (2, 3, 5, 4, 2), "tokens": (2, 3, 7, 5), "vectors": (2, 3, 5)}[kind]
    aims = {"maps": (2, 3, 6, 4, 2), "tokens": (2, 3, 7, 6), "vectors": (2, 3, 6)}[kind]
    x, target, weight, bias = make(*fronts), make(*aims), make(4, 6, 5), make(4, 6)
    x_index, target_index = [1, 0, 1, 1], [0, 1, 1, 0]
    y, dist2 = K.stitch_hint(x, weight, bias, x_index, target, target_index)
    for lane in range(4):
        front = x[x_index[lane]]
        if kind == "maps":
            want = F.conv2d(front, weight[lane][:, :, None, None], bias[lane])
        else:
            want = F.linear(front, weight[lane], bias[lane])
        torch.testing.assert_close(y[3 * lane : 3 * lane + 3], want)
        apart = (want - target[target_index[lane]]).square().flatten(1).sum(1)
        torch.testing.assert_close(dist2[lane], apart)
    assert K.stitch_hint(x, weight, bias, x_index, target, target_index, write=False)[0] is None
    assert K.stitch_hint(x, weight, bias, x_index)[1] is None


def test_stitch_hint_writes_channels_last(maker):
    y, _ = K.stitch_hint(maker()(1, 2, 3, 4, 5), maker()(2, 6, 3), maker()(2, 6), [0, 0])
    assert y.shape == (4, 6, 4, 5)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_stitch_hint_gradients_are_those_of_finite_differences(maker):
    make = maker()
    target = make(1, 2, 3, 2, 1)
    inputs = [make(2, 2, 2, 2, 1, grad=True), make(3, 3, 2, grad=True), make(3, 3, grad=True)]
    assert torch.autograd.gradcheck(
        lambda x, w, b: K.stitch_hint(x, w, b, [1, 0, 1], target, [0, 0, 0]), inputs
    )


def test_hint_terms_are_squared_distances_to_shared_targets(maker):
    make = maker()
    activations, targets = [make(6, 4, 2, 3), make(9, 5)], [make(3, 4, 2, 3), make(3, 5)]
    for got, a, t in zip(K.hint_terms(activations, targets), activations, targets, strict=True):
        want = [[torch.dist(a[3 * i + j], t[j]) ** 2 for j in range(3)] for i in range(len(a) // 3)]
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_term_is_the_normalised_distance(maker, scope):
    h, g = maker()(2 * 3, 5), maker(layout="first")(3, 5) + 1
    got = K.term(K.hint_terms([h], [g])[0], K.squared_norm(g), scope)
    for lane, part in enumerate(h.view(2, 3, 5)):
        if scope == "batch":
            want = (part - g).norm() / g.norm()
        else:
            want = ((part - g).norm(dim=1) / g.norm(dim=1)).mean()
        torch.testing.assert_close(got[lane], want)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_term_has_no_gradient_at_zero_distance_and_is_zero_for_a_zero_target(maker, scope):
    g = maker()(3, 5)
    h = g.repeat(2, 1).requires_grad_()
    value = K.term(K.hint_terms([h], [g])[0], K.squared_norm(g), scope)
    (grad,) = torch.autograd.grad(value.sum(), h)
    assert torch.equal(value, torch.zeros(2)) and torch.equal(grad, torch.zeros_like(h))
    h, zero = maker()(6, 5, grad=True), torch.zeros(3, 5, dtype=torch.float64)
    value = K.term(K.hint_terms([h], [zero])[0], K.squared_norm(zero), scope)
    (grad,) = torch.autograd.grad(value.sum(), h)
    assert torch.equal(value, torch.zeros(2)) and torch.equal(grad, torch.zeros_like(h))


def test_term_refuses_an_unknown_scope():
    with pytest.raises(FulaError, match="scope = 'image': must be 'batch' or 'sample'"):
        K.term(torch.ones(1, 2), torch.ones(2), "image")


def test_linf_step_stays_in_the_ball_and_in_the_pixel_range():
    clean = torch.tensor([[0.02, 0.5, 0.98, 0.5]], dtype=torch.float64)
    grad = torch.tensor([[-3.0, 0.0, 2.0, 1e-30]], dtype=torch.float64)
    got = K.pgd_step(clean.clone(), grad, clean, 0.1, 0.05)
    want = torch.tensor([[0.0, 0.5, 1.0, 0.55]], dtype=torch.float64)
    torch.testing.assert_close(got, want)


def test_l2_step_follows_the_gradient_and_shortens_the_offset():
    clean = torch.full((3, 4), 0.5, dtype=torch.float64)
    x = clean + torch.tensor([0.0, 0.0, 0.3])[:, None]
    grad = torch.tensor([[3.0, 4, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 0, 5]], dtype=torch.float64)
    got = K.pgd_step(x, grad, clean, 0.1, 0.2, "l2")
    torch.testing.assert_close(got[0], clean[0] + 0.1 * torch.tensor([0.6, 0.8, 0, 0]).double())
    assert torch.equal(got[1], clean[1])
    offset = x[2] + torch.tensor([0, 0, 0, 0.1]).double() - clean[2]
    torch.testing.assert_close(got[2], clean[2] + offset * 0.2 / offset.norm())


@pytest.mark.parametrize("markers", [False, True])
def test_augment_is_pad_crop_flip_paste(markers):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
    pad, index = 2, np.array([6, 0, 3, 3])
    dy, dx = (rng.integers(0, 2 * pad + 1, 7).astype(np.int32) for _ in range(2))
    flip = rng.random(7) > 0.5
    patterns, which = rng.random((4, 2, 3, 3), dtype=np.float32), rng.integers(0, 4, 7)
    top, left = rng.integers(0, 5, 7), rng.integers(0, 3, 7)
    more = [torch.from_numpy(a) for a in (patterns, which, top, left)] if markers else []
    arrays = (images, index, dy, dx, flip)
    got = K.augment(*(torch.from_numpy(a) for a in arrays), pad, *more)
    assert got.shape == (4, 3, 6, 5) and got.is_contiguous(memory_format=torch.channels_last)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for row, i in enumerate(index):
        crop = padded[i, dy[i] : dy[i] + 6, dx[i] : dx[i] + 5].astype(np.float32) / np.float32(255)
        crop = crop[:, ::-1].copy() if flip[i] else crop
        if markers:
            crop[top[i] : top[i] + 2, left[i] : left[i] + 3] = patterns[which[i]]
        assert np.array_equal(got[row].permute(1, 2, 0).numpy(), crop)


def test_gram_solves_least_squares_with_a_bias(maker):
    x, y = maker()(50, 4), maker(layout="first")(50, 3)
    xtx, xty = K.gram(x.float(), y.float())
    design = np.c_[x.float().numpy(), np.ones(50)]
    want, *_ = np.linalg.lstsq(design.astype(np.float64), y.float().double().numpy(), rcond=None)
    np.testing.assert_allclose(np.linalg.solve(xtx, xty), want, rtol=1e-9)
    assert xtx.dtype == torch.float64 and math.isclose(xtx[-1, -1], 50)


def test_empty_lanes_are_empty(maker):
    make = maker()
    none = make(0, 4, 3, 2)
    y, mean, var, dist2 = K.lane_norm(
        none, make(4), make(4), make(0, 4), make(0, 4),
        lanes=0, training=True, eps=1e-5, target=make(5, 4, 3, 2),
    )  # fmt: skip
    assert y.shape == none.shape and mean.shape == var.shape == (0, 4) and dist2.shape == (0, 5)
    y, dist2 = K.stitch_hint(
        make(1, 5, 4, 3, 2), make(0, 6, 4), make(0, 6), [], make(1, 5, 6, 3, 2), []
    )
    assert y.shape == (0, 6, 3, 2) and dist2.shape == (0, 5)
    assert K.hint_terms([none], [make(5, 4, 3, 2)])[0].shape == (0, 5)
