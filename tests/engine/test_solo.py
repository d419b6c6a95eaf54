"""The solo executor, against steps written out with torch's own modules and modes."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fula_fast import engine
from fula_fast.engine.solo import SoloCell, StitchedModel, evaluate, learning_rate, run_wave
from fula_fast.engine.task import WaveTask, attacked_mask, stitches_of
from fula_fast.errors import FulaError
from fula_fast.methods.weightings import term_weights
from fula_fast.models import batchnorm, build, content_hash
from fula_fast.pipelines import Batch
from fula_fast.stitching.stitch import Stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

SITES, CLASSES, BATCH = 9, 5, 6
SHAPE = (3, 8, 8)


def donor(seed, hook="post_relu"):
    """A small float64 network with statistics as after training: none is the identity."""
    torch.manual_seed(seed)
    model = build("resnet18", num_classes=CLASSES, input_shape=SHAPE, width=4, hook=hook).double()
    for norm in batchnorm.norms(model):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0, 0.2)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, *SHAPE, dtype=torch.float64))
    return model.eval()


@pytest.fixture(scope="module")
def donors():
    return donor(0), donor(1)


def batch(seed=0, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(size, *SHAPE, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (size,), generator=generator)


def stitch_of(front, end, i, j, seed=3):
    shapes = front.site_shapes[i - 1], end.site_shapes[j - 1]
    return Stitch(*shapes).double().initialise("random", seed)


def solo_cell(donors, i, j, objective, steps=10, **options):
    front, end = donors
    rule = protocol("fula-v2", **options)
    return SoloCell(front, end, i, j, objective, rule, stitch_of(front, end, i, j), steps)


def written_out(donors, i, j, x, y, stitch, *, bn="train", target_bn="train"):
    """All objectives of one step from torch's own train() and eval(): (hint, terms, slm, tlm)."""
    front, end = (copy.deepcopy(d).requires_grad_(False) for d in donors)
    native = copy.deepcopy(end)
    for model, mode in ((front, bn), (end, bn), (native, target_bn)):
        model.train(mode == "train")
    with torch.no_grad():
        a, g, targets = x, x, []
        for stage in front.stages[:i]:
            a = stage(a)
        for stage in native.stages:
            g = stage(g)
            targets.append(g)
        target_logits = native.head(g)
    h = stitch(a)
    terms = [(h - targets[j - 1]).norm() / targets[j - 1].norm()]
    for stage, g in zip(end.stages[j:], targets[j:], strict=True):
        h = stage(h)
        terms.append((h - g).norm() / g.norm())
    logits = end.head(h)
    soft = target_logits.softmax(-1)
    slm = F.cross_entropy(logits, soft) + (soft * soft.log()).sum(-1).mean()
    return terms, slm, F.cross_entropy(logits, y), front, end


@pytest.mark.parametrize(("i", "j"), [(3, 3), (7, 2), (2, 8), (9, 9)])
@pytest.mark.parametrize(
    ("bn", "target_bn"), [("train", "train"), ("train", "eval"), ("eval", "eval")]
)
def test_objectives_and_statistics_of_a_step(donors, i, j, bn, target_bn):
    x, y = batch()
    cell = solo_cell(donors, i, j, {"fula": 1.0}, bn=bn, target_bn=target_bn)
    stitch = copy.deepcopy(cell.model.stitch)
    result = cell.step(x, y)
    terms, slm, tlm, front, end = written_out(
        donors, i, j, x, y, stitch, bn=bn, target_bn=target_bn
    )
    assert result.terms == pytest.approx([float(t.detach()) for t in terms], rel=1e-10)
    assert result.values["hint"] == pytest.approx(result.terms[0])
    assert result.values["fula"] == pytest.approx(np.mean(result.terms))
    assert result.values["slm"] == pytest.approx(float(slm.detach()), rel=1e-8)
    assert result.values["tlm"] == pytest.approx(float(tlm.detach()), rel=1e-10)
    assert result.loss == result.values["fula"]
    for ours, theirs in ((cell.model.front, front), (cell.model.tail, end)):
        for name, value in theirs.named_buffers():
            torch.testing.assert_close(dict(ours.named_buffers())[name], value)


def stage_of(name):
    return int(name.split(".")[1]) + 1 if name.startswith("stages") else SITES + 1


@pytest.mark.parametrize("bn", ["train", "eval"])
def test_which_statistics_move(donors, bn):
    i, j = 4, 6
    before = [content_hash(d) for d in donors]
    cell = solo_cell(donors, i, j, {"tlm": 1.0}, bn=bn)
    for seed in range(3):
        cell.step(*batch(seed))
    for model, reference, passed in (
        (cell.model.front, donors[0], lambda stage: stage <= i),
        (cell.model.tail, donors[1], lambda stage: stage > j),
        (cell.native, donors[1], lambda stage: False),  # the target pass moves nothing
    ):
        for name, value in model.named_buffers():
            moved = not torch.equal(value, dict(reference.named_buffers())[name])
            assert moved == (bn == "train" and passed(stage_of(name))), name
    assert before == [content_hash(d) for d in donors]
    assert not any(m.training for d in donors for m in d.modules())


def test_frozen_weights_stay(donors):
    cell = solo_cell(donors, 2, 2, {"fula": 1.0})
    cell.step(*batch())
    for model, reference in ((cell.model.front, donors[0]), (cell.model.tail, donors[1])):
        for name, value in model.named_parameters():
            assert torch.equal(value, dict(reference.named_parameters())[name])
            assert value.grad is None


def loss_of(donors, i, j, objective, x, y, stitch, weights):
    terms, slm, tlm, *_ = written_out(donors, i, j, x, y, stitch)
    parts = {"hint": terms[0], "slm": slm, "tlm": tlm}
    parts["fula"] = sum(w * t for w, t in zip(weights, terms, strict=True))
    return sum(weight * parts[name] for name, weight in objective.items())


@pytest.mark.parametrize(
    ("objective", "weighting"),
    [
        ({"hint": 1.0}, "uniform"),
        ({"fula": 1.0}, "uniform"),
        ({"fula": 1.0}, "last"),
        ({"slm": 1.0}, "uniform"),
        ({"tlm": 1.0}, "uniform"),
        ({"fula": 0.7, "tlm": 0.2, "slm": 1.5}, "cutoff=2"),
    ],
)
def test_the_gradient_is_that_of_finite_differences(donors, objective, weighting):
    i, j = 3, 5
    x, y = batch()
    cell = solo_cell(donors, i, j, objective, weighting=weighting)
    start = copy.deepcopy(cell.model.stitch)
    result = cell.step(x, y)
    weights = term_weights(weighting, SITES + 1 - j)
    value = loss_of(donors, i, j, objective, x, y, start, weights)
    assert result.loss == pytest.approx(float(value.detach()), rel=1e-9)
    gradients = {name: p.grad for name, p in cell.model.stitch.named_parameters()}
    for name, place in (("weight", (1, 2)), ("weight", (7, 0)), ("bias", (4,))):
        sides = []
        for step in (1e-6, -1e-6):
            moved = copy.deepcopy(start)
            with torch.no_grad():
                dict(moved.named_parameters())[name][place] += step
                sides.append(float(loss_of(donors, i, j, objective, x, y, moved, weights)))
        slope = (sides[0] - sides[1]) / 2e-6
        assert float(gradients[name][place]) == pytest.approx(slope, rel=2e-5, abs=1e-9)


def test_adam_with_l2_decay_on_weight_and_bias(donors):
    """Three steps by the textbook formula, the decay added to the gradient."""
    cell = solo_cell(donors, 3, 3, {"fula": 1.0}, lr=1e-2, weight_decay=0.1, schedule="constant")
    parameters = dict(cell.model.stitch.named_parameters())
    value = {n: p.detach().clone() for n, p in parameters.items()}
    first, second = ({n: torch.zeros_like(v) for n, v in value.items()} for _ in range(2))
    for t in range(1, 4):
        cell.step(*batch(t))
        for n, p in parameters.items():
            gradient = p.grad + 0.1 * value[n]
            first[n] = 0.9 * first[n] + 0.1 * gradient
            second[n] = 0.999 * second[n] + 0.001 * gradient**2
            scale = (second[n] / (1 - 0.999**t)).sqrt() + 1e-8
            value[n] = value[n] - 1e-2 * first[n] / (1 - 0.9**t) / scale
            torch.testing.assert_close(p.detach(), value[n], rtol=1e-10, atol=1e-12)


def test_sgd_with_momentum_and_decay(donors):
    options = {"optimiser": "sgd", "lr": 0.05, "momentum": 0.8, "weight_decay": 0.02}
    cell = solo_cell(donors, 3, 3, {"fula": 1.0}, schedule="constant", **options)
    weight = cell.model.stitch.weight
    value, velocity = weight.detach().clone(), 0.0
    for t in range(3):
        cell.step(*batch(t))
        velocity = 0.8 * velocity + weight.grad + 0.02 * value
        value = value - 0.05 * velocity
        torch.testing.assert_close(weight.detach(), value, rtol=1e-10, atol=1e-13)


def test_the_schedule_of_thirds():
    rule = protocol("fula-v2", lr=1.0)
    rates = [learning_rate(rule, step, 9) for step in range(9)]
    assert rates == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3)
    assert [learning_rate(rule, s, 10) for s in (3, 4, 6, 7)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert learning_rate(protocol("fula-v1", lr=1.0), 9, 9) == 1.0


def test_fula_is_hint_at_the_last_site(donors):
    cells = [solo_cell(donors, 5, SITES, {m: 1.0}) for m in ("fula", "hint")]
    for seed in range(4):
        results = [cell.step(*batch(seed)) for cell in cells]
        assert results[0].loss == results[1].loss
    states = [cell.model.state_dict() for cell in cells]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("site", [1, 4, 9])
@pytest.mark.parametrize("method", ["hint", "fula", "slm"])
def test_a_self_stitch_at_the_identity_has_no_loss_and_full_agreement(donors, site, method):
    end = donors[1]
    stitch = Stitch(end.site_shapes[site - 1], end.site_shapes[site - 1]).double()
    stitch.initialise("identity", 0)
    rule = protocol("fula-v2", bn="eval", weight_decay=0.0)
    cell = SoloCell(end, end, site, site, {method: 1.0}, rule, stitch, 3)
    for seed in range(3):
        assert abs(cell.step(*batch(seed)).loss) < 1e-14
    found = evaluate(cell.model, cell.native, test_batches(), torch.float64)
    assert found["agreement_right_wrong"] == 1.0
    assert found["agreement_soft"] == pytest.approx(1.0, abs=1e-6)
    assert found["term_stitch"] < 1e-5  # Adam scales rounding noise up to its rate
    assert found["kappa"] in (1.0, pytest.approx(1.0))


def test_batches(count=3):
    for seed in range(count):
        x, y = batch(100 + seed, 20)
        yield Batch(x, y, torch.arange(len(y)))


test_batches.__test__ = False


def test_evaluation_counts_what_it_says(donors):
    front, end = donors
    stitch = stitch_of(front, end, 3, 4)
    model = StitchedModel(front, end, 3, 4, stitch)
    found = evaluate(model, end, test_batches(), torch.float64)
    x = torch.cat([b.images for b in test_batches()])
    y = torch.cat([b.labels for b in test_batches()])
    with torch.no_grad():
        h = stitch(front.run(x, 0, 3))
        logits, native = end.head(end.run(h, 4)), end(x)
        g = end.run(x, 0, 4)
    mine, theirs = (z.argmax(-1).eq(y).numpy() for z in (logits, native))
    assert found["accuracy"] == pytest.approx(mine.mean())
    assert found["agreement_right_wrong"] == pytest.approx((mine == theirs).mean())
    p, q = (z.softmax(-1).numpy() for z in (logits, native))
    soft = (p * q).sum(1) / np.maximum((p**2).sum(1), (q**2).sum(1))
    assert found["agreement_soft"] == pytest.approx(soft.mean())
    chance = mine.mean() * theirs.mean() + (1 - mine.mean()) * (1 - theirs.mean())
    assert found["kappa"] == pytest.approx(((mine == theirs).mean() - chance) / (1 - chance))
    assert found["term_stitch"] == pytest.approx(float((h - g).norm() / g.norm()))


def overflowing(decay: float) -> dict:
    """Options under which parameters grow without bound: decay by far more than their size."""
    return {"optimiser": "sgd", "weight_decay": decay, "schedule": "constant"}


def test_a_loss_that_is_not_finite_names_step_and_terms(donors):
    cell = solo_cell(donors, 3, 8, {"hint": 1.0}, **overflowing(1e200))
    with pytest.raises(FulaError, match=r"the loss became (nan|inf) at step 1 \(terms: .+\)"):
        for seed in range(3):
            cell.step(*batch(seed))


def test_only_marked_images_are_attacked(donors):
    seen = {}

    def attacker(model, x, y):
        seen.update(x=x, y=y, training=any(n.training for n in batchnorm.norms(model)))
        return x + 0.25

    cell = solo_cell(donors, 3, 3, {"tlm": 1.0})
    cell.attacker = attacker
    x, y = batch()
    mask = torch.tensor([True, False, True, False, False, False])
    result = cell.step(x, y, mask)
    moved = x + 0.25 * mask.view(-1, 1, 1, 1)
    expected = solo_cell(donors, 3, 3, {"tlm": 1.0}).step(moved, y)
    assert result == expected
    assert torch.equal(seen["x"], x[mask]) and torch.equal(seen["y"], y[mask])
    assert not seen["training"]  # the attack sees the model in eval mode


def test_targets_of_attacked_images_may_be_those_of_the_clean_ones(donors):
    x, y = batch()
    everything = torch.ones(BATCH, dtype=torch.bool)
    found = {}
    for target in ("clean", "adversarial"):
        cell = solo_cell(donors, 3, 3, {"fula": 1.0}, attack_target=target)
        cell.attacker = lambda model, x, y: x + 0.25
        found[target] = cell.step(x, y, everything).terms
    moved = solo_cell(donors, 3, 3, {"fula": 1.0}).step(x + 0.25, y).terms
    assert found["adversarial"] == moved
    assert found["clean"] != moved


@pytest.mark.parametrize("share", ["first", "random"])
def test_the_attacked_share_of_a_batch(share):
    rule = protocol("fula-v2", share=share)
    cells = [
        Cell("a", "b", 1, 1, "tlm", {"tlm": 1.0}, rule, alpha=alpha) for alpha in (0, 0.3, 0.5, 1)
    ]
    masks = [attacked_mask(cell, epoch=2, step=7, batch_size=31) for cell in cells]
    assert [int(m.sum()) for m in masks] == [0, 9, 15, 31]  # floor(alpha * B)
    for smaller, larger in pairwise(masks):
        assert not (smaller & ~larger).any()
    if share == "first":
        assert masks[1].nonzero().flatten().tolist() == list(range(9))
    else:
        other = attacked_mask(cells[2], epoch=2, step=8, batch_size=31)
        assert not torch.equal(masks[2], other)


class Repeated:
    """A stream of the same two batches."""

    steps, batch_size = 2, BATCH

    def epoch(self, epoch, start_step=0):
        for seed in range(start_step, 2):
            x, y = batch(seed)
            yield Batch(x.float(), y, torch.arange(BATCH))


def task_of(donors, cells, **options):
    return WaveTask(
        cells, *donors, Repeated(), lambda samples: batch(9, 40)[0].float(),
        {"test": test_batches, "clean": lambda: test_batches(1)}, 2, precision="fp32", **options,
    )  # fmt: skip


def cell_of(method, i=3, j=3, name=None, **options):
    objective = {} if method == "dm" else {method: 1.0}
    rule = protocol("fula-v2", **options)
    return Cell("a", "b", i, j, method, objective, rule, id=name or f"{method}-{i}-{j}")


@pytest.fixture(scope="module")
def single(donors):
    """The donors in float32, as they come from a checkpoint."""
    return tuple(copy.deepcopy(d).float() for d in donors)


def test_a_wave_gives_every_cell_its_row_and_its_stitch(single):
    before = [content_hash(d) for d in single]
    cells = [cell_of("dm"), cell_of("fula"), cell_of("hint", 2, 6)]
    outcomes = [o for group in run_wave(task_of(single, cells)) for o in group]
    assert [o.cell.id for o in outcomes] == [c.id for c in cells]
    for outcome in outcomes:
        measures = {
            "accuracy",
            "agreement_top1",
            "agreement_right_wrong",
            "agreement_soft",
            "kappa",
            "term_stitch",
        }
        expected = {"loss", "train_seconds", "engine_mode", *measures}
        assert set(outcome.metrics) == expected | {f"clean_{m}" for m in measures}
        assert set(outcome.tensors) == {"weight", "bias"} and outcome.error is None
    assert outcomes[0].metrics["loss"] is None and outcomes[1].metrics["loss"] > 0
    assert before == [content_hash(d) for d in single]


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_wave_leaves_the_donors_as_they_are(single, precision):
    task = replace(task_of(single, [cell_of("tlm")]), precision=precision)
    list(run_wave(task))
    assert {p.dtype for d in single for p in d.parameters()} == {torch.float32}


def test_a_cell_that_fails_does_not_stop_the_others(single):
    cells = [cell_of("tlm", **overflowing(1e30), name="bad"), cell_of("tlm", name="good")]
    bad, good = [o for group in run_wave(task_of(single, cells)) for o in group]
    assert "at step" in bad.error and not bad.tensors
    assert good.error is None and np.isfinite(good.metrics["loss"])


def test_in_bfloat16_the_trained_numbers_stay_float32(single):
    """Steps far below bfloat16's spacing add up, as they do in a wave."""
    cells = [cell_of("tlm", lr=2e-6, init="random", name="a"), cell_of("hint", 2, 6, name="b")]
    task = replace(task_of(single, cells), precision="bf16")
    alone = {o.cell.id: o for group in run_wave(task) for o in group}
    together = {o.cell.id: o for group in engine.run_wave(task) for o in group}
    start = stitches_of(task)
    for name, outcome in alone.items():
        assert {t.dtype for t in outcome.tensors.values()} == {torch.float32}
        assert outcome.error is None and 0 <= outcome.metrics["accuracy"] <= 1
        theirs = together[name].metrics["term_stitch"]
        assert outcome.metrics["term_stitch"] == pytest.approx(theirs, rel=0.05)
    moved = (alone["a"].tensors["weight"] - start["a"].weight).abs()
    assert moved.min() > 0 and moved.max() < 1e-5


def test_stale_and_refreshed_closed_forms(single):
    """Both have the same stitch; only behind the refreshed one have statistics moved (Fig. 3)."""
    cells = [cell_of("dm", name=s, dm_stats=s) for s in ("stale", "refreshed")]
    stale, refreshed = [o for group in run_wave(task_of(single, cells)) for o in group]
    for name, value in stale.tensors.items():
        assert torch.equal(value, refreshed.tensors[name])
    assert stale.metrics["agreement_soft"] != refreshed.metrics["agreement_soft"]


def test_sites_out_of_range(single):
    with pytest.raises(
        FulaError, match=r"front site 12 is out of range: resnet18 has sites 1 to 9"
    ):
        list(run_wave(task_of(single, [cell_of("tlm", 12, 3)])))
    with pytest.raises(FulaError, match="end site 0 is out of range"):
        list(run_wave(task_of(single, [cell_of("tlm", 3, 0)])))
