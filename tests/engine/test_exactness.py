"""A lane equals its cell alone: parameters and running statistics after twenty float64 steps; for
maps, tokens and vectors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fula_fast.engine.lane_norms import last_norm
from fula_fast.engine.solo import SoloCell
from fula_fast.engine.wave import Wave
from fula_fast.models import build, stages
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

STEPS, BATCH = 20, 4
SITES = 9


def donor(seed: int, **options):
    torch.manual_seed(seed)
    model = build("resnet18", num_classes=5, input_shape=(3, 8, 8), width=4, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: not the identity
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model.double().eval()


@pytest.fixture(scope="module", params=["post_relu", "pre_relu"])
def donors(request):
    return donor(0, hook=request.param), donor(1, hook=request.param)


def batches(steps: int = STEPS):
    rng = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.rand(BATCH, 3, 8, 8, generator=rng, dtype=torch.float64)
        yield x, torch.randint(5, (BATCH,), generator=rng)


def cell(number: int, front_site: int, end_site: int, method, **options) -> Cell:
    objective = {} if method == "dm" else method if isinstance(method, dict) else {method: 1.0}
    rule = protocol("fula-v2", **options)
    name = method if isinstance(method, str) else "mixture"
    return Cell("a", "b", front_site, end_site, name, objective, rule, seed=number, id=f"{number}")


def stitches(cells, front, end):
    found = {}
    for c in cells:
        shapes = front.site_shapes[c.front_site - 1], end.site_shapes[c.end_site - 1]
        found[c.id] = new_stitch(*shapes, c.protocol).double().initialise("random", c.seed)
    return found


def run_wave(cells, front, end, steps=STEPS, **options):
    wave = Wave(
        cells, front, end, stitches(cells, front, end), steps, dtype=torch.float64, **options
    )
    for number, (x, y) in enumerate(batches(steps)):
        wave.step(x, y, number)
    return wave


def run_solo(c, front, end, steps=STEPS):
    stitch = stitches([c], front, end)[c.id]
    solo = SoloCell(front, end, c.front_site, c.end_site, c.objective, c.protocol, stitch, steps)
    for x, y in batches(steps):
        last = solo.step(x, y)
    return solo, last


def assert_equal(wave, front, end, steps=STEPS, tolerance=1e-9):
    for number, lane in enumerate(wave.lanes):
        solo, last = run_solo(lane.cell, front, end, steps)
        ours = wave.bank.lane_state(number)
        for name, theirs in solo.model.stitch.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(ours[name], theirs, rtol=tolerance, atol=tolerance)
        _assert_statistics(wave, number, lane, solo, tolerance)
        if lane.trained:
            assert float(wave.loss[number]) == pytest.approx(last.loss, rel=tolerance)


def _assert_statistics(wave, number, lane, solo, tolerance):
    close = {"rtol": tolerance, "atol": tolerance}
    row = 0 if wave.network.shared else number
    for part, mine, theirs, at in (
        ("tail", wave.network.tail, solo.model.tail, number),
        ("front", wave.network.front, solo.model.front, row),
    ):
        expected = dict(theirs.named_buffers())
        for name, value in mine.named_buffers():
            if not name.endswith(("running_mean", "running_var")):
                continue
            head = wave.network.tail.num_sites + 1
            stage = int(name.split(".")[1]) + 1 if name.startswith("stages") else head
            if part == "front" and stage > lane.front_site:
                continue  # the shared front runs on for other lanes
            torch.testing.assert_close(value[at], expected[name], **close)


GRID = [
    (1, 1, "fula", {}),
    (3, 5, "hint", {}),
    (7, 3, "slm", {}),
    (2, 2, "tlm", {"weight_decay": 0.01}),
    (9, 9, "fula", {}),
    (4, 4, {"fula": 0.5, "tlm": 0.5}, {"schedule": "constant"}),
    (5, 5, "dm", {}),
    (3, 3, "fula", {"weighting": "cutoff=2", "lr": 3e-3}),
    (3, 3, "fula", {"weighting": "last", "norm": "sample"}),
    (6, 2, {"hint": 0.3, "slm": 0.7}, {"norm": "sample"}),
    (1, 9, "hint", {"norm": "sample"}),
]


def grid(**shared):
    return [cell(n, i, j, m, **{**o, **shared}) for n, (i, j, m, o) in enumerate(GRID)]


def test_every_kind_of_lane_equals_its_cell(donors):
    assert_equal(run_wave(grid(), *donors), *donors)


@pytest.mark.parametrize(
    "shared",
    [
        {"bn": "eval"},
        {"bn": "train", "target_bn": "eval"},
        {"bn": "eval", "target_bn": "train"},
        # SGD: what comes before the second batch norm has directions without any gradient, whose
        # rounding noise Adam would scale up to the size of a step.
        {"stitch_bn": "both", "optimiser": "sgd"},
        {"stitch_bn": "both", "optimiser": "sgd", "stitch_bias": False},
        {"optimiser": "sgd", "lr": 1e-2},
    ],
    ids=str,
)
def test_rules_shared_by_a_wave(shared):
    pair = donor(0), donor(1)
    assert_equal(run_wave(grid(**shared), *pair, steps=3), *pair, steps=3)


site = st.integers(1, SITES)
method = st.sampled_from(
    ["dm", "hint", "slm", "tlm", "fula", {"fula": 0.2, "slm": 0.3, "tlm": 0.5}]
)
options = st.fixed_dictionaries(
    {
        "weighting": st.sampled_from(["uniform", "last", "cutoff=1", "cutoff=3"]),
        "norm": st.sampled_from(["batch", "sample"]),
        "lr": st.sampled_from([1e-3, 1e-2]),
    }
)
random_lanes = st.lists(st.tuples(site, site, method, options), min_size=2, max_size=6)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(lanes=random_lanes, cut=st.integers(1, 5))
def test_any_partition_gives_the_same_results(lanes, cut):
    pair = donor(0), donor(1)
    cells = [cell(n, i, j, m, **o) for n, (i, j, m, o) in enumerate(lanes)]
    whole = run_wave(cells, *pair, steps=6)
    found = {lane.cell.id: whole.bank.lane_state(n) for n, lane in enumerate(whole.lanes)}
    for part in (cells[:cut], cells[cut:]):
        if not part:
            continue
        wave = run_wave(part, *pair, steps=6)
        for number, lane in enumerate(wave.lanes):
            for name, value in wave.bank.lane_state(number).items():
                torch.testing.assert_close(value, found[lane.cell.id][name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("momentum", [pytest.param(0.1, marks=pytest.mark.slow), 0.3, 0.9, None])
def test_lanes_without_a_functional_term_settle_at_the_end(momentum):
    """Training without the tail, and running it for the last steps alone, changes nothing."""
    pair = donor(0), donor(1)
    for model in pair:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = momentum
    cells = [
        cell(0, 8, 7, "hint"),
        cell(1, 8, 8, "dm"),
        cell(2, 9, 7, "fula", weighting="cutoff=1"),
    ]
    steps = {0.1: 220, 0.3: 70, 0.9: 20, None: 12}[momentum]
    short, whole = run_wave(cells, *pair, steps), run_wave(cells, *pair, steps, settle=False)
    skipped = short.settling_from
    assert skipped == (0 if momentum is None else steps - {0.1: 197, 0.3: 59, 0.9: 9}[momentum])
    ours, theirs = short.state(), whole.state()
    for name, value in ours.items():
        if name.startswith(("tail", "front", "optimiser")) and "tracked" not in name:
            torch.testing.assert_close(value, theirs[name], rtol=1e-8, atol=1e-8)


def test_a_lane_with_a_non_finite_loss_leaves_the_others_alone():
    pair = donor(0), donor(1)
    cells = grid()[:4]
    broken = dataclasses.replace(cells[0], id="broken")
    initial = stitches([*cells, broken], *pair)
    initial["broken"].weight.data.fill_(float("nan"))
    waves = []
    for members in (cells, [*cells, broken]):
        start = {c.id: initial[c.id] for c in members}
        wave = Wave(members, *pair, start, STEPS, dtype=torch.float64)
        for number, (x, y) in enumerate(batches(5)):
            wave.step(x, y, number)
        waves.append(wave)
    plain, mixed = waves
    (dead,) = [n for n, lane in enumerate(mixed.lanes) if lane.cell.id == "broken"]
    assert int(mixed.dead_at[dead]) == 0
    assert not bool(mixed.alive[dead])
    for number, lane in enumerate(plain.lanes):
        at = next(n for n, other in enumerate(mixed.lanes) if other.cell.id == lane.cell.id)
        for name, value in plain.bank.lane_state(number).items():
            torch.testing.assert_close(
                mixed.bank.lane_state(at)[name], value, rtol=1e-12, atol=1e-14
            )


# Sites that are no maps


class Mixing(nn.Module):
    """A transformer's block without attention's softmax: tokens mix, then features."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(tokens, tokens)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.narrow(torch.nn.functional.gelu(self.wide(x)))


class Tokens(nn.Module):
    """8x8 images as sixteen tokens of six features."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, 2)
        self.one, self.two = Mixing(16, 6), Mixing(16, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.two(self.one(x)).mean(1))


class Vectors(nn.Module):
    """A perceptron with batch norm over features."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.two = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10))
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        return self.head(self.two(self.one(x)))


def staged(kind: type[nn.Module], seed: int):
    torch.manual_seed(seed)
    model = kind().double().eval()
    return stages(model, sites=["one", "two"], input_shape=(3, 8, 8), num_classes=5)


def tokens(seed: int):
    return staged(Tokens, seed)


def vectors(seed: int):
    return staged(Vectors, seed)


METHODS = ("hint", "slm", "tlm", "fula", "dm")


@pytest.mark.parametrize(
    ("front", "end", "pairs"),
    [
        (tokens, tokens, [(1, 1), (2, 1), (1, 2)]),
        (vectors, vectors, [(1, 1), (2, 2), (1, 2)]),
        (donor, tokens, [(3, 1), (9, 2)]),
        (tokens, donor, [(1, 2), (2, 9)]),
    ],
)
def test_lanes_between_sites_of_all_kinds_equal_their_cells(front, end, pairs):
    pair = front(0), end(1)
    like = front is end
    grid = [(i, j, m) for i, j in pairs for m in METHODS if like or m != "dm"]
    cells = [cell(number, *place) for number, place in enumerate(grid)]
    if front is vectors:  # a batch norm of few samples: Adam would scale rounding noise up
        cells = [cell(n, *place, optimiser="sgd", lr=1e-2) for n, place in enumerate(grid)]
    assert_equal(run_wave(cells, *pair, steps=5), *pair, steps=5)


def taps(model) -> list[bool]:
    """For every stage behind site 1: does a lane norm measure what the stage gives?"""
    wave = run_wave([cell(0, 1, 1, "fula")], model, model, steps=0)
    return [tap is not None for tap in wave.network._taps]


@pytest.mark.parametrize("hook", ["post_relu", "pre_relu"])
def test_the_last_norm_of_a_residual_stage_measures(hook):
    assert all(taps(donor(0, hook=hook)))


def test_a_norm_whose_output_is_changed_or_reshaped_does_not():
    stock = build("torchvision:resnet18", num_classes=5, input_shape=(3, 32, 32)).double().eval()
    assert not any(taps(stock))  # its ReLU works in place, behind the norm
    assert not any(taps(vectors(0)))
    assert not any(taps(tokens(0)))


def test_a_stage_without_norms_runs_and_has_none():
    x = torch.rand(2, 3)
    y, norm = last_norm(nn.Linear(3, 2), x)
    assert y.shape == (2, 2) and norm is None
