"""Attacked lanes equal their solo cells; packed lanes equal their stitched models."""

from __future__ import annotations

import pytest
import torch

from fula_fast.attacks import robust_evaluate
from fula_fast.attacks.apgd import APGDConfig
from fula_fast.attacks.names import CE, DLR, TARGETED
from fula_fast.attacks.pgd import pgd
from fula_fast.attacks.slots import Slots
from fula_fast.device.graphs import Rerun
from fula_fast.engine.attacked import attacked_lanes, exact_network
from fula_fast.engine.packed_wave import PackedWave
from fula_fast.engine.solo import SoloCell, StitchedModel
from fula_fast.engine.task import attacked_mask
from fula_fast.engine.wave import Wave
from fula_fast.measures.agreement import soft_agreement
from fula_fast.models import build
from fula_fast.pipelines import Batch
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import Attack, protocol

STEPS, BATCH = 5, 6


def donor(seed: int):
    torch.manual_seed(seed)
    model = build("resnet18", num_classes=5, input_shape=(3, 8, 8), width=4)
    return model.double().eval()


def shallow(dtype: torch.dtype, alpha: float, device: str = "cpu"):
    """Lanes of a wave in any dtype, with moved statistics, and their float32 donors."""
    pair = tuple(donor(seed).float().to(device) for seed in (0, 1))
    rule = protocol("fula-v2", attack=Attack(steps=1, eps=0.02, step=0.02))
    group = [
        Cell("a", "b", i, j, "m", {"hint": 1.0}, rule, alpha=alpha, seed=n, id=str(n))
        for n, (i, j) in enumerate([(2, 3), (5, 4), (9, 9)])
    ]
    start = {c.id: stitch_of(c, *pair).float() for c in group}
    wave = Wave(group, *pair, start, 2, dtype=dtype, settle=False, device=device)
    for number, batch in zip(range(2), batches(), strict=False):
        batch = Batch(batch.images.float().to(device), batch.labels.to(device), batch.index)
        attacked = wave.attack(batch, 0, number) if wave.attacked else None
        wave.step(batch.images, batch.labels, number, attacked)
    return wave, pair


def batches():
    rng = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        x = torch.rand(BATCH, 3, 8, 8, generator=rng, dtype=torch.float64)
        yield Batch(x, torch.randint(5, (BATCH,), generator=rng), torch.arange(BATCH))


def cells(**options):
    grid = [
        (1, 1, {"fula": 1.0}, 0.5),
        (3, 5, {"hint": 1.0}, 1.0),
        (3, 5, {"hint": 1.0}, 0.5),
        (7, 3, {"slm": 1.0}, 1.0),
        (2, 2, {"tlm": 1.0}, 0.5),
        (9, 9, {"fula": 1.0}, 1.0),
        (5, 5, {}, 1.0),
    ]
    rule = protocol("fula-v2", attack=Attack(steps=10), **options)
    return [
        Cell("a", "b", i, j, "m", objective, rule, alpha=alpha, seed=n, id=str(n))
        for n, (i, j, objective, alpha) in enumerate(grid)
    ]


def stitch_of(cell, front, end):
    shapes = front.site_shapes[cell.front_site - 1], end.site_shapes[cell.end_site - 1]
    return new_stitch(*shapes, cell.protocol).double().initialise("random", cell.seed)


def trained(group, front, end):
    start = {c.id: stitch_of(c, front, end) for c in group}
    wave = Wave(group, front, end, start, STEPS, dtype=torch.float64)
    for number, batch in enumerate(batches()):
        attacked = wave.attack(batch, 0, number) if wave.attacked else None
        wave.step(batch.images, batch.labels, number, attacked)
    return wave


def solo_of(cell, front, end):
    solo = SoloCell(
        front, end, cell.front_site, cell.end_site, cell.objective, cell.protocol,
        stitch_of(cell, front, end), STEPS,
        attacker=lambda model, x, y: pgd(model, x, y, cell.protocol.attack),
    )  # fmt: skip
    for number, batch in enumerate(batches()):
        mask = attacked_mask(cell, 0, number, BATCH)
        solo.step(batch.images, batch.labels, mask)
    return solo


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="v2"),
        pytest.param({"share": "first", "attack_target": "clean"}, id="first-clean"),
        pytest.param({"bn": "eval"}, id="eval", marks=pytest.mark.slow),
    ],
)
def test_an_attacked_lane_equals_its_cell(options):
    pair = donor(0), donor(1)
    wave = trained(cells(**options), *pair)
    for number, lane in enumerate(wave.lanes):
        solo = solo_of(lane.cell, *pair)
        ours = wave.bank.lane_state(number)
        for name, theirs in solo.model.stitch.state_dict().items():
            torch.testing.assert_close(ours[name], theirs, rtol=1e-9, atol=1e-9)
        for name, value in wave.network.tail.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                theirs = dict(solo.model.tail.named_buffers())[name]
                torch.testing.assert_close(value[number], theirs, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def twins():
    """Lanes of three routes, on two of which there are several; their fronts are shared, or each
    its own; and images with labels that most of them give."""
    pair = donor(0), donor(1)
    rule = protocol("fula-v2", attack=Attack(steps=1, eps=0.02, step=0.02))
    sites = [(2, 3), (2, 3), (5, 4), (2, 3), (5, 4), (9, 9)]
    found = {}
    for alpha in (0.0, 0.5):
        group = [
            Cell("a", "b", i, j, "m", {"hint": 1.0}, rule, alpha=alpha, seed=n, id=str(n))
            for n, (i, j) in enumerate(sites)
        ]
        found[alpha] = trained(group, *pair)
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wave = found[0.0]
    with torch.no_grad():
        each = [stitched(wave, n, *pair).double()(x).argmax(1) for n in range(len(sites))]
    labels = torch.stack(each).gather(0, torch.arange(24)[None] % len(sites))[0]
    return found, x, labels


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_lanes_of_one_route_need_no_host(twins, without_host_contact, alpha):
    waves, x, _ = twins
    packed = PackedWave(waves[alpha], range(6))
    routes = {packed.route(lane): [] for lane in range(6)}
    for lane in range(6):
        routes[packed.route(lane)].append(lane)
    assert sorted(map(len, routes.values())) == [1, 2, 3]
    for route, members in routes.items():
        lane = torch.tensor(members * 3)
        own = x[: len(lane)].clone().requires_grad_()
        fly = packed.along(route)
        fly(own, lane)
        with without_host_contact():
            logits = fly(own, lane)
            (grad,) = torch.autograd.grad(logits.sum(), own)
        expected = packed.logits(own, lane)
        torch.testing.assert_close(logits, expected)
        (theirs,) = torch.autograd.grad(expected.sum(), own)
        torch.testing.assert_close(grad, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_iteration_over_lanes_has_no_host_contact(twins, without_host_contact, norm, alpha):
    waves, x, _ = twins
    packed = PackedWave(waves[alpha], range(6))
    slots = Slots(
        4, packed, APGDConfig(norm, 0.05, 5), [CE, DLR, TARGETED], x, keep_first=True, recorder=None
    )
    for lane in (0, 2, 5):
        slots.lane.fill_(lane)
        slots.iterate(packed.route(lane))
        with without_host_contact():
            slots.iterate(packed.route(lane))


@pytest.mark.parametrize(
    ("attack", "options", "alpha"),
    [
        ("autoattack-rand", {"steps": 6}, 0.0),
        ("apgd20", {"steps": 4, "packing": False}, 0.5),
        ("pgd-3", {"step": 0.005}, 0.0),
        ("pgd-3", {"step": 0.005, "random_start": True, "restarts": 2}, 0.5),
        pytest.param("apgd20", {"steps": 4, "precision": "bf16"}, 0.5, marks=pytest.mark.slow),
    ],
)
def test_a_recorded_attack_on_lanes_equals_the_eager_one(
    twins, monkeypatch, attack, options, alpha
):
    """Route by route, in batches of fixed sizes: all but the graph itself."""
    waves, x, labels = twins
    packed = PackedWave(waves[alpha], range(6))
    options = {"eps": 0.012, "batch_size": 8, "keep_images": True, **options}

    def attacked(mode):
        return robust_evaluate(packed, x, labels, attack, mode=mode, **options)

    eager = attacked("eager")
    monkeypatch.setattr("fula_fast.attacks.autoattack.recorder_on", lambda _: Rerun())
    recorded = attacked("auto")
    assert {r.mode for r in eager} == {"eager"} and {r.mode for r in recorded} == {"captured"}
    for ours, theirs in zip(recorded, eager, strict=True):
        assert torch.equal(ours.correct, theirs.correct)
        assert torch.equal(ours.robust, theirs.robust)
        if "precision" not in options:  # bfloat16's rounding depends on the batch: one falls sooner
            assert ours.gradients == theirs.gradients
            assert ours.verified == theirs.verified
            torch.testing.assert_close(ours.adversarial, theirs.adversarial, rtol=0, atol=1e-6)
    robust = torch.stack([r.robust for r in eager])
    assert 0 < robust.sum() < torch.stack([r.correct for r in eager]).sum()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(("attack", "batch"), [("autoattack-rand", 16), ("pgd-5", 4)])
def test_a_captured_attack_on_lanes_equals_the_eager_one(attack, batch, alpha):
    wave, pair = shallow(torch.bfloat16, alpha, "cuda")
    packed = PackedWave(wave, range(3), exact_network(wave, *pair))
    x = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        labels = packed.logits(x, torch.arange(80, device="cuda") % 3).argmax(1)
    given = (packed, x, labels, attack)
    captured, eager = (
        robust_evaluate(*given, mode=mode, eps=0.01, batch_size=batch) for mode in ("auto", "eager")
    )
    for ours, theirs in zip(captured, eager, strict=True):
        assert ours.mode == "captured" and theirs.mode == "eager"
        assert (ours.robust != theirs.robust).sum() <= 1  # batches differ in size
        assert ours.gradients == pytest.approx(theirs.gradients, rel=0.2)


def test_packed_lanes_give_each_models_logits_and_gradients():
    pair = donor(0), donor(1)
    group = cells()[:5]
    wave = trained(group, *pair)
    packed = PackedWave(wave, list(range(len(wave.lanes))))
    lane = torch.tensor([4, 0, 2, 2, 1, 3, 0])
    x = torch.rand(len(lane), 3, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = packed.logits(x, lane)
    (grad,) = torch.autograd.grad(logits[:, 1].sum(), x)
    for place, number in enumerate(lane.tolist()):
        solo = solo_of(wave.lanes[number].cell, *pair)
        solo.model.eval()
        one = x[place : place + 1].detach().requires_grad_()
        expected = solo.model(one)
        torch.testing.assert_close(logits[place : place + 1], expected.float())
        (own,) = torch.autograd.grad(expected[:, 1].sum(), one)
        torch.testing.assert_close(grad[place : place + 1], own, rtol=1e-5, atol=1e-8)


def stitched(wave, number: int, front, end) -> StitchedModel:
    """A lane's model in plain float32 PyTorch: donors' weights, stitch, running statistics."""
    lane = wave.lanes[number]
    stitch = stitch_of(lane.cell, front, end).float()
    stitch.load_state_dict(wave.bank.lane_state(number), strict=False)
    model = StitchedModel(front, end, lane.front_site, lane.end_site, stitch).eval()
    own = {"front": 0 if wave.network.shared else number, "tail": number}
    for part, row in own.items():
        norms = dict(getattr(wave.network, part).named_modules())
        for name, module in getattr(model, part).named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.copy_(norms[name].running_mean[row])
                module.running_var.copy_(norms[name].running_var[row])
    return model


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("attack, options", [("pgd-2", {"step": 0.05}), ("apgd-ce", {"steps": 3})])
def test_lanes_of_a_bfloat16_wave_are_attacked_as_float32_models(attack, options, alpha):
    """Search, confirmation, clean accuracy and the end donor's logits: all in float32."""
    wave, (front, end) = shallow(torch.bfloat16, alpha)
    x = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = end(x).argmax(1)
        labels[::2] = stitched(wave, 0, front, end)(x).argmax(1)[::2]
    given = (x, labels, attack, {"eps": 0.05, "batch_size": 8, **options})
    (part,) = attacked_lanes(wave, (front, end), range(3), *given)
    fates = set()
    for number, columns, result in part:
        model = stitched(wave, number, front, end)
        (expected,) = robust_evaluate(
            model, x, labels, attack, keep_images=True, **{**given[3], "fold": False}
        )
        with torch.no_grad():
            torch.testing.assert_close(result.logits, model(result.adversarial))
            agreement = soft_agreement(result.logits, end(result.adversarial))
        assert torch.equal(result.correct, expected.correct)
        assert torch.equal(result.robust, expected.robust)
        assert columns["robust_clean_accuracy"] == expected.clean_accuracy
        assert columns["robust_agreement_soft"] == pytest.approx(float(agreement), abs=1e-6)
        fates |= {(bool(a), bool(b)) for a, b in zip(result.correct, result.robust, strict=True)}
    assert len(fates) == 3, "some wrong, some fooled, some robust"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fast"])
def test_a_bfloat16_search_of_a_bfloat16_wave_is_the_options_alone(precision):
    wave, donors = shallow(torch.bfloat16, 0.0)
    exact = exact_network(wave, *donors)
    assert exact.dtype == torch.float32
    packed = PackedWave(wave, range(3), exact)
    search = packed.search((3, 8, 8), bf16=precision != "fp32", folded=True)
    assert packed.dtype == torch.float32 and search.dtype == (
        torch.float32 if precision == "fp32" else torch.bfloat16
    )
    kinds = {p.dtype for model in (search.front, search.tail) for p in model.parameters()}
    assert kinds == {search.dtype}
    assert {p.dtype for s in search.stitches for p in s.parameters()} == {search.dtype}


def test_an_attack_without_memory_is_made_on_fewer_images_and_said(monkeypatch, caplog):
    """What has been trained stays; below a least size the failure is told."""
    from fula_fast.engine.attacked import _fitting

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    sizes = []

    def attacked(options, fits):
        sizes.append(options.get("batch_size"))
        if (options.get("batch_size") or 512) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "found"

    assert _fitting(lambda o: attacked(o, 128), {"eps": 0.1}) == "found"
    assert sizes == [None, 256, 128] and "512 images at once runs out of memory: 256" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        _fitting(lambda o: attacked(o, 8), {"batch_size": 100})
    assert sizes[3:] == [100, 50]
