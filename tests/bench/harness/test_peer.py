"""Both peers give the solo executor's results, and the published one the published figures."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fula_fast.bench.harness.peer import LOSSES, METHODS, FairPeer, PublishedPeer
from fula_fast.engine.solo import SoloCell
from fula_fast.models import build, describe
from fula_fast.stitching.stitch import Stitch
from fula_fast.study.protocol import protocol

MODEL = {"num_classes": 5, "input_shape": (3, 8, 8), "width": 4}
PEERS = [PublishedPeer, FairPeer]


def donor(seed: int, hook: str = "post_relu"):
    torch.manual_seed(seed)
    model = build("resnet18", hook=hook, **MODEL)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: not the identity
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model.double().eval()


def stitch_of(front, end, front_site, end_site):
    shapes = front.site_shapes[front_site - 1], end.site_shapes[end_site - 1]
    return Stitch(*shapes).double().initialise("random", 3)


def batches(steps: int, batch: int = 4):
    rng = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.rand(batch, 3, 8, 8, generator=rng, dtype=torch.float64)
        yield x, torch.randint(5, (batch,), generator=rng)


def peer_of(kind, front, end, front_site, end_site, method, **options):
    start = stitch_of(front, end, front_site, end_site)
    sites = front_site, end_site, method, start.weight, start.bias
    return kind(front, end, *sites, **{"dtype": torch.float64, **options})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("sites", "hook"),
    [((1, 1), "post_relu"), ((3, 7), "pre_relu"), ((7, 2), "post_relu"), ((9, 9), "post_relu")],
)
@pytest.mark.parametrize("kind", PEERS)
def test_a_peer_trains_as_a_lone_cell_does(kind, sites, hook, method):
    front, end = donor(0, hook), donor(1, hook)
    before = copy.deepcopy(front.state()), copy.deepcopy(end.state())
    peer = peer_of(kind, front, end, *sites, method)
    rule = protocol("fula-v1", hook=hook)
    solo = SoloCell(front, end, *sites, {method: 1.0}, rule, stitch_of(front, end, *sites), 3)
    for x, y in batches(3):
        loss = peer.step(x, y)
        assert float(loss) == pytest.approx(solo.step(x, y).loss, rel=1e-10)
    for name in ("weight", "bias"):
        ours, theirs = getattr(peer.stitch, name), getattr(solo.model.stitch, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert_statistics(peer, solo)
    for model, state in zip((front, end), before, strict=True):  # donors are never modified
        assert all(torch.equal(value, state[name]) for name, value in model.state().items())


def assert_statistics(peer, solo):
    """Running statistics of the front up to its site, and of the end behind the stitch."""
    pairs = [
        *zip(peer.front.stages[: peer.front_site], solo.model.front.stages, strict=False),
        *zip(
            peer.end.stages[peer.end_site :], solo.model.tail.stages[peer.end_site :], strict=True
        ),
    ]
    for ours, theirs in pairs:
        expected = dict(theirs.named_buffers())
        for name, value in ours.named_buffers():
            torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


def test_a_fair_peer_in_bfloat16_stays_near_double():
    front, end = donor(0), donor(1)
    wide = peer_of(FairPeer, front, end, 3, 5, "fula")
    narrow = peer_of(FairPeer, front, end, 3, 5, "fula", dtype=torch.bfloat16)
    assert narrow.end.stages[1](torch.rand(2, 4, 8, 8).bfloat16()).dtype == torch.bfloat16
    for x, y in batches(3, batch=16):
        assert float(narrow.step(x, y)) == pytest.approx(float(wide.step(x, y)), rel=0.03)
    numbers = [p.dtype for p in narrow.stitch.parameters()]
    numbers += [b.dtype for n, b in narrow.end.named_buffers() if "running" in n]
    assert set(numbers) == {torch.float32}


@pytest.mark.parametrize("kind", PEERS)
def test_a_peer_s_memory_is_free_when_it_goes(kind):
    gc.disable()
    try:
        peer = peer_of(kind, donor(0), donor(1), 5, 5, "fula")
        peer.step(*next(batches(1)))
        networks = [weakref.ref(model) for model in (peer.front, peer.end, peer.native)]
        del peer
        assert [network() for network in networks] == [None] * 3
    finally:
        gc.enable()


def flops_of_a_step(peer) -> int:
    x, y = next(batches(1))
    counter = FlopCounterMode(display=False)
    with counter:
        peer.step(x, y)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", PEERS)
def test_the_work_of_a_step(kind):
    """Published: three whole forward passes and the tail's backward pass; fair: head and tail."""
    sites = [site.flops for site in describe("resnet18", **MODEL).sites]
    head = describe("resnet18", **MODEL).head.flops
    whole, tail = sum(sites) + head, sum(sites[5:])
    stitch = stitch_flops()
    expected = {
        PublishedPeer: 3 * whole + tail + stitch,
        FairPeer: sum(sites[:5]) + (whole - head) + 2 * tail + head + stitch,
    }[kind]
    peer = peer_of(kind, donor(0), donor(1), 5, 5, "fula")
    assert flops_of_a_step(peer) == 4 * expected


def stitch_flops() -> int:
    """Forward and weight gradient of an 8 x 8 map over 4 x 4 positions."""
    return 2 * 2 * 8 * 8 * 4 * 4


def published_peer(golden, front_site, end_site, method):
    front, end = golden.donors()
    pair = f"{front_site}_{end_site}"
    start = (torch.as_tensor(golden.initial[f"{name}_{pair}"]).double() for name in "wb")
    return PublishedPeer(front, end, front_site, end_site, method, *start, dtype=torch.float64)


def assert_step(peer, images, labels, case, step):
    """One training step; all four losses and every term as published."""
    passes = peer.passes(images)
    losses = {name: loss(passes, labels) for name, loss in LOSSES.items()}
    ours = [float(losses[name].detach()) for name in ("fula", "hint", "slm", "tlm")]
    np.testing.assert_allclose(ours, case["losses_fula_hint_slm_tlm"][step], rtol=1e-6)
    terms = [float(term.detach()) for term in passes.terms()]
    np.testing.assert_allclose(terms, case["terms"][step], rtol=1e-6)
    peer.update(losses[peer.method])


@pytest.mark.slow
def test_first_published_step(golden):
    peer = published_peer(golden, 3, 3, "fula")
    case = golden.case(3, 3, "fula")
    assert_step(peer, golden.images[:32], golden.labels[:32], case, 0)


@pytest.mark.long
@pytest.mark.parametrize(("sites", "method"), [((3, 3), "fula"), ((7, 3), "tlm")])
def test_every_published_figure(golden, sites, method):
    peer = published_peer(golden, *sites, method)
    case = golden.case(*sites, method)
    for step in range(8):
        batch = slice(32 * step, 32 * step + 32)
        assert_step(peer, golden.images[batch], golden.labels[batch], case, step)
    close = {"rtol": 1e-6, "atol": 1e-9}
    weight, bias = (p.detach() for p in (peer.stitch.weight, peer.stitch.bias))
    start = golden.initial["w_{}_{}".format(*sites)]
    np.testing.assert_allclose(weight.flatten()[: len(case["w"])], case["w"], **close)
    np.testing.assert_allclose(weight.norm(), case["w_norm"], **close)
    np.testing.assert_allclose((weight - torch.as_tensor(start)).norm(), case["dw_norm"], **close)
    np.testing.assert_allclose(bias[: len(case["b"])], case["b"], **close)
    front, tail = peer.front.state(), peer.end.state()
    published = {
        "front_bn1_mean": front["bn1.running_mean"],
        "end_last_bn_mean": tail["layer4.1.bn2.running_mean"],
        "end_last_bn_var": tail["layer4.1.bn2.running_var"],
    }
    for name, ours in published.items():
        np.testing.assert_allclose(ours[: len(case[name])], case[name], **close)
    assert_logits(peer, golden, case)


def assert_logits(peer, golden, case):
    for model in (peer.front, peer.end):
        model.eval()
    with torch.no_grad():
        logits = peer.passes(golden.images[256:456]).logits
    np.testing.assert_allclose(logits[:4], case["logits"], rtol=1e-6, atol=1e-8)
    accuracy = (logits.argmax(1) == golden.labels[256:456]).double().mean()
    assert float(accuracy) == case["accuracy"]
