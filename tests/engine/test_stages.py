"""Objectives one after another and combined gradients: a training written out in plain PyTorch, in
float64, which lanes of a wave and lone cells meet."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fula_fast.device.graphs import Rerun
from fula_fast.engine.captured import Captured
from fula_fast.engine.modes import Stepper
from fula_fast.engine.run import _train
from fula_fast.engine.solo import SoloCell
from fula_fast.engine.wave import Wave
from fula_fast.methods import TrainingStage
from fula_fast.methods.staging import united
from fula_fast.models import Staged
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

from .conftest import assert_same, cells, prepared, taken

SITES, STEPS, BATCH = 3, 6, 7
STAGED = {
    "fula last, then tlm": [({"fula": 1.0}, "last", 1), ({"tlm": 1.0}, None, 1)],
    "hint, then slm and hint": [({"hint": 1.0}, None, 2), ({"slm": 0.7, "hint": 2.0}, None, 1)],
    "tlm, then fula, then hint": [
        ({"tlm": 1.0}, None, 1), ({"fula": 1.0}, (1.0, 3.0), 1), ({"hint": 1.0}, None, 1),
    ],
}  # fmt: skip
COMBINED = {
    "two": [({"fula": 1.0, "tlm": 0.3}, "uniform", 1)],
    "three": [({"hint": 1.0, "slm": 3.0, "tlm": 2.0}, None, 1)],
    "one, then two": [({"fula": 1.0}, "last", 1), ({"tlm": 1.0, "hint": 0.5}, None, 1)],
}


def donor(seed: int) -> Staged:
    torch.manual_seed(seed)
    chains = [
        [nn.Conv2d(n, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()] for n in (3, 4, 4)
    ]
    net = Staged(
        [nn.Sequential(*chain) for chain in chains],
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        name="tiny", num_classes=3, input_shape=(3, 4, 4), site_names=("0", "1", "2"),
    )  # fmt: skip
    return net.double().eval()


def cell(stages, number=0, sites=(2, 2), combine="sum", **options) -> Cell:
    rule = protocol(schedule="thirds", lr=3e-2, weight_decay=0.01, **options)
    stages = tuple(TrainingStage(dict(o), w, e) for o, w, e in stages)
    whole = united([stage.objective for stage in stages])
    if len(stages) == 1:
        rule = rule.model_copy(update={"weighting": stages[0].weighting or "uniform"})
    return Cell(
        "a", "b", *sites, "m", whole, rule, seed=number, data_seed=5, id=f"{number}",
        stages=stages if len(stages) > 1 else (), combine=combine,
    )  # fmt: skip


def start_of(c: Cell):
    shape = (4, 4, 4)
    return new_stitch(shape, shape, c.protocol).double().initialise("random", c.seed)


def batches():
    rng = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        x = torch.rand(BATCH, 3, 4, 4, generator=rng, dtype=torch.float64)
        yield x, torch.randint(3, (BATCH,), generator=rng)


def losses_of(objective, weighting, terms, logits, targets, y) -> dict[str, torch.Tensor]:
    """Each weighted method, written out."""
    shares = {"last": [0.0] * (len(terms) - 1) + [1.0]}.get(weighting, weighting)
    shares = [1.0] * len(terms) if shares in (None, "uniform") else list(shares)[: len(terms)]
    log_p, log_q = targets.log_softmax(1), logits.log_softmax(1)
    values = {
        "hint": terms[0],
        "fula": sum(s * t for s, t in zip(shares, terms, strict=True)) / sum(shares),
        "slm": (log_p.exp() * (log_p - log_q)).sum(1).mean(),
        "tlm": -log_q[torch.arange(len(y)), y].mean(),
    }
    return {name: weight * values[name] for name, weight in objective.items()}


def surgery(grads: list[np.ndarray], step: int) -> tuple[np.ndarray, int]:
    """Yu et al. 2020, Algorithm 1, and how many conflicts it found."""
    total, conflicts = np.zeros_like(grads[0]), 0
    key = np.array([5, 0x9C64], dtype=np.uint64)
    for i, own in enumerate(grads):
        others = [j for j in range(len(grads)) if j != i]
        words = {
            j: np.random.Philox(key=key, counter=[0, 0, j, i]).random_raw(STEPS)[step]
            for j in others
        }
        own = own.copy()
        for j in sorted(others, key=words.__getitem__):
            inner = own @ grads[j]
            if inner < 0:
                own -= inner / (grads[j] @ grads[j]) * grads[j]
                conflicts += 1
        total += own
    return total, conflicts


def by_hand(c: Cell, stages, front: Staged, end: Staged) -> tuple[dict[str, torch.Tensor], int]:
    """The trained map and bias of a conv stitch: batch statistics, Adam, the rate by thirds."""
    front, native, tail = (copy.deepcopy(net).train() for net in (front, end, end))
    start, site = start_of(c), c.end_site
    weight, bias = (t.detach().clone().requires_grad_() for t in (start.weight, start.bias))
    adam = torch.optim.Adam([weight, bias], lr=c.protocol.lr, weight_decay=0.01)
    epochs, conflicts = [e for *_, e in stages], 0
    for step, (x, y) in enumerate(batches()):
        epoch = step * sum(epochs) // STEPS
        now = next(k for k in range(len(stages)) if epoch < sum(epochs[: k + 1]))
        with torch.no_grad():
            a, targets = x, [x]
            for stage in front.stages[: c.front_site]:
                a = stage(a)
            for stage in native.stages:
                targets = [*targets, stage(targets[-1])]
            end_logits = native.head(targets[-1])
        h = F.conv2d(a, weight[:, :, None, None], bias)
        terms = [(h - targets[site]).norm() / targets[site].norm()]
        for k in range(site, SITES):
            h = tail.stages[k](h)
            terms.append((h - targets[k + 1]).norm() / targets[k + 1].norm())
        parts = losses_of(*stages[now][:2], terms, tail.head(h), end_logits, y)
        adam.param_groups[0]["lr"] = c.protocol.lr * 0.1 ** (3 * step // STEPS)
        adam.zero_grad()
        if c.combine == "sum":
            sum(parts.values()).backward()
        else:
            found = [
                torch.autograd.grad(parts[name], [weight, bias], retain_graph=True)
                for name in sorted(parts)
            ]
            flat, seen = surgery([torch.cat([t.flatten() for t in g]).numpy() for g in found], step)
            conflicts += seen
            own = torch.from_numpy(flat).split([weight.numel(), bias.numel()])
            weight.grad, bias.grad = own[0].view_as(weight), own[1]
        adam.step()
    return {"weight": weight.detach(), "bias": bias.detach()}, conflicts


def alone(c: Cell, front: Staged, end: Staged):
    solo = SoloCell(
        front, end, c.front_site, c.end_site, c.objective, c.protocol, start_of(c), STEPS,
        stages=c.stages, combination=c.combine, seed=c.data_seed,
    )  # fmt: skip
    for x, y in batches():
        solo.step(x, y)
    return dict(solo.model.stitch.state_dict())


def together(group, front: Staged, end: Staged) -> dict[str, dict[str, torch.Tensor]]:
    wave = Wave(group, front, end, {c.id: start_of(c) for c in group}, STEPS, dtype=torch.float64)
    for number, (x, y) in enumerate(batches()):
        wave.step(x, y, number)
    return {lane.cell.id: wave.bank.lane_state(n) for n, lane in enumerate(wave.lanes)}


def assert_close(ours, theirs) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("combine", ["sum", "pcgrad"])
def test_a_lane_and_a_lone_cell_equal_the_training_written_out(combine):
    """All kinds together in one wave, at two depths, plain methods between them."""
    front, end = donor(0), donor(1)
    kinds = STAGED if combine == "sum" else COMBINED
    asked = {}
    for sites in ((2, 2), (1, 2)):
        for stages in kinds.values():
            c = cell(stages, len(asked), sites, combine)
            asked[c.id] = c, stages
    group = [c for c, _ in asked.values()]
    if combine == "sum":
        plain = [cell([({name: 1.0}, None, 1)], 10 + n) for n, name in enumerate(("hint", "tlm"))]
        group = [plain[0], *group, plain[1]]
    found, met = together(group, front, end), 0
    for c, stages in asked.values():
        expected, conflicts = by_hand(c, stages, front, end)
        assert_close(found[c.id], expected)
        assert_close(alone(c, front, end), expected)
        met += conflicts
    assert (met > 5) == (combine == "pcgrad"), "without conflicts the test says nothing"


def test_lanes_of_other_methods_do_not_notice_a_border():
    front, end = donor(0), donor(1)
    plain = [cell([({name: 1.0}, None, 1)], n) for n, name in enumerate(("hint", "tlm", "fula"))]
    staged = [cell(stages, 5 + n) for n, stages in enumerate(STAGED.values())]
    without, beside = together(plain, front, end), together([*plain, *staged], front, end)
    for name, expected in without.items():
        for part, value in expected.items():
            assert torch.equal(beside[name][part], value)


def mixed(**options) -> list[Cell]:
    """Lanes of conftest's network: staged ones, with borders at epoch 1 of 2, and plain ones."""
    group, rule = cells(**options), {"epochs": 1}
    last = TrainingStage({"fula": 1.0}, "last", **rule)
    task = TrainingStage({"tlm": 1.0}, None, **rule)
    hint = TrainingStage({"hint": 1.0}, None, **rule)
    for n, stages in ((0, (last, task)), (1, (hint, last)), (2, (task, hint))):
        whole = united([stage.objective for stage in stages])
        group[n] = replace(group[n], objective=whole, stages=stages)
    return group


def bordered(combine: str) -> list[Cell]:
    """`mixed`; or lanes that first minimise one loss, then combine the gradients of two."""
    if combine == "sum":
        return mixed()
    one, both = (
        TrainingStage(weights, "uniform", 1) for weights in ({"hint": 1.0}, {"fula": 0.5, "tlm": 2})
    )
    whole = united([one.objective, both.objective])
    return [
        replace(c, stages=(one, both), objective=whole, combine=combine)
        for c in cells()
        if c.objective
    ]


class Counting(Rerun):
    made = 0

    def record(self, *args):
        self.made += 1
        return super().record(*args)


@pytest.mark.parametrize("combine", ["sum", "pcgrad"])
def test_a_captured_wave_is_recorded_anew_at_the_border_alone(combine):
    (task, plain), (_, wave) = (prepared(bordered(combine)) for _ in range(2))
    assert [phase.start for phase in wave.phases] == [0, 3]
    recorder = Counting()
    recorded = Captured(task, wave, recorder)
    assert taken(recorded) == taken(Stepper(task, plain, "eager"))
    assert_same(wave, plain)
    assert recorder.made == 2


def test_a_step_that_combines_gradients_has_no_host_contact(without_host_contact):
    task, wave = prepared(bordered("pcgrad"))
    recorded = Captured(task, wave, Rerun())
    next(recorded.epoch(0))
    phase = wave.phase_at(3)
    recorded._step(phase)
    with without_host_contact():
        recorded._step(phase)


def test_a_lane_is_carried_only_as_far_as_its_stage_needs():
    _, wave = prepared(mixed(bn="eval"))
    before, after = ({lane.cell.id: lane.reach for lane in phase.lanes} for phase in wave.phases)
    assert [(before[n], after[n]) for n in "012"] == [(9, 10), (5, 9), (10, 3)]
    assert before["3"] == after["3"]


class Kept:
    """Checkpoints in memory."""

    saved = None

    def save(self, name, tensors, meta):
        self.saved = copy.deepcopy((dict(tensors), dict(meta)))

    def load(self, name):
        return copy.deepcopy(self.saved)


@pytest.mark.parametrize("combine", ["sum", "pcgrad"])
def test_a_training_resumed_in_the_second_stage_ends_with_the_same_bits(combine):
    (task, whole), (_, cut), (_, resumed) = (prepared(bordered(combine)) for _ in range(3))
    _train(task, whole, Stepper(task, whole, "eager"), None, "w")
    store = Kept()
    _train(replace(task, epochs=1), cut, Stepper(task, cut, "eager"), store, "w")
    assert store.saved[1]["epoch"] == 1
    _train(task, resumed, Stepper(task, resumed, "eager"), store, "w")
    assert_same(resumed, whole)
    assert not torch.equal(cut.bank.flat, whole.bank.flat)
