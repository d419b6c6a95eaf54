"""The memory model: amounts, what a stage saves (against autograd), and its published figures."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fula_fast.device.memory import available_memory, budget
from fula_fast.errors import FulaError
from fula_fast.measures.moment_memory import CellMeasures
from fula_fast.study.cell import Cell
from fula_fast.study.donor_spec import DonorSpec
from fula_fast.study.facts import DataFacts, donor_facts
from fula_fast.study.protocol import protocol
from fula_fast.study.wave_memory import (
    LaneSites,
    lane_bytes,
    lane_of,
    lanes_bytes,
    turn_room,
    wave_bytes,
)

MIB = 2**20


def facts(model="resnet18", side=32, **options):
    return donor_facts(
        DonorSpec(name="x", model=model, **options), DataFacts((3, side, side), 10, 1), "post_relu"
    )


@pytest.mark.parametrize(
    "amount, expected",
    [
        ("8GiB", 8 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("512mib", 512 * MIB),
        ("10%", 100),
        ("4096", 4096),
        (4096, 4096),
    ],
)
def test_amounts(amount, expected):
    assert budget(amount, available=1000) == expected


@pytest.mark.parametrize("amount", ["", "lots", "8XB", "-3", "0", "0%", "101%", "8 G B", "2k"])
def test_amounts_that_are_none(amount):
    with pytest.raises(FulaError, match="memory"):
        budget(amount, available=1000)


def test_available_memory_is_the_least_of_machine_and_cgroup(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert available_memory(tmp_path) == 4000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 4000 * 1024
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("1000000\n")
    assert available_memory(tmp_path) == 2_000_000


def test_a_full_width_lane_has_the_published_size():
    """270 MiB at site 1 and 2 MiB at site 9, saved in bf16 at batch 128, before working room."""
    end = facts()
    saved = 2 * 128 * (end.elements(1) + sum(end.saved[1:]))
    assert round(saved / MIB) == 270
    assert 2 * 128 * end.elements(9) == 2 * MIB
    assert 270 * MIB < lane_bytes(LaneSites(1, 1, False), end, end, 128, 2).training < 340 * MIB


@pytest.mark.parametrize(
    "model, side, options",
    [
        ("resnet18", 16, {"width": 8}),
        ("resnet50", 16, {"width": 8}),
        ("resnet18", 32, {"width": 8, "stem": "stock"}),
        ("resnet18", 16, {"width": 8, "residuals": False}),
        ("vgg16", 32, {"width": 8}),
        ("vgg19", 32, {"width": 8, "batch_norm": False}),
    ],
)
@pytest.mark.parametrize("hook", ["post_relu", "pre_relu"])
def test_saved_elements_are_what_autograd_keeps(model, side, options, hook):
    """Counted by hooks on autograd itself: each kept storage once, weights and statistics not."""
    import torch

    from fula_fast.models import build

    donor = DonorSpec(name="x", model=model, **options)
    expected = donor_facts(donor, DataFacts((3, side, side), 10, 1), hook)
    staged = build(
        model, num_classes=10, input_shape=(3, side, side), hook=hook, **donor.build_options()
    )
    staged.requires_grad_(False).train()
    batch = 2
    x = torch.rand(batch, 3, side, side, requires_grad=True)
    for site, stage in enumerate(staged.stages, 1):
        x = x.detach().requires_grad_()
        kept = {}

        def keep(tensor, kept=kept):
            if tensor.dim() == 4 and tensor.shape[0] == batch:
                kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = stage(x)
        kept.pop(x.untyped_storage().data_ptr(), None)  # the stage before owns its output
        assert sum(kept.values()) <= batch * expected.saved[site - 1] * 1.001
        assert sum(kept.values()) >= batch * expected.saved[site - 1] * 0.6
        x = y


@pytest.mark.parametrize(
    "names",
    [("linear_cka",), ("mutual_knn",), ("jensen_shannon",), ("svcca", "rsa_cosine_pearson")],
)
def test_what_measures_keep_is_what_was_predicted(names):
    """Every tensor that is alive after the columns were taken, of three lanes at four sites."""
    import gc

    import torch

    from fula_fast.measures import measure
    from fula_fast.measures.outputs import OutputTable
    from fula_fast.measures.pooled import PooledTable

    widths, classes, images, samples, lanes = [24, 40, 64, 96], 10, 300, 120, [0, 1, 2]
    chosen = [measure(name) for name in names]
    before = {id(x) for x in gc.get_objects() if issubclass(type(x), torch.Tensor)}
    table = PooledTable([1] * 3, 4, torch.device("cpu"), chosen, range(samples))
    outputs = OutputTable(3, chosen)
    for start in range(0, images, 50):
        index = torch.arange(start, start + 50)
        for site, p in enumerate(widths, 1):
            table.add(site, lanes, torch.rand(150, p, 2, 2), torch.rand(50, p, 2, 2), index)
        outputs.add(torch.rand(3, 50, classes), torch.rand(50, classes), index)
    table.columns()
    alive = (
        x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and id(x) not in before
    )
    kept = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
    asked = CellMeasures(names, images, samples)
    lane, shared = asked.lane_bytes(widths, classes), asked.shared_bytes(widths, classes)
    assert 0.4 * (3 + 1) * lane < sum(kept.values()) < 3 * lane + shared  # 1: the end's own


def test_measures_that_keep_much_make_lanes_larger_and_others_do_not():
    end, lane = facts(width=8), LaneSites(2, 2, False)
    rule = end, end, 16, "fp32"
    plain = wave_bytes([lane], *rule)
    few, many = (CellMeasures(("mutual_knn", "linear_cka"), 10**4, n) for n in (10, 5000))
    assert wave_bytes([lane], *rule, measured=CellMeasures(("terms", "rank"), 10**4, 2000)) == plain
    assert plain <= wave_bytes([lane], *rule, measured=few)
    assert wave_bytes([lane], *rule, measured=few) < wave_bytes([lane], *rule, measured=many)


lanes = st.builds(LaneSites, st.integers(1, 9), st.integers(1, 9), st.booleans())


@given(st.lists(lanes, min_size=1, max_size=6), lanes)
def test_a_lane_more_needs_more(some, another):
    donor = facts(width=8)
    before = wave_bytes(some, donor, donor, 16, "fp32")
    assert wave_bytes([*some, another], donor, donor, 16, "fp32") > before


@given(lanes)
def test_precision_batch_and_attack_cost_memory(lane):
    donor = facts(width=8)
    each = [lane_bytes(lane, donor, donor, 16, width) for width in (2, 4, 8)]
    assert each == sorted(each) and each[0] < each[-1]
    whole = [wave_bytes([lane], donor, donor, 16, p) for p in ("fp32", "fp64")]
    assert whole[0] <= whole[1]
    assert wave_bytes([lane], donor, donor, 32, "fp32") > whole[0]
    attacked = replace(lane, attacked=True)
    plain = replace(lane, attacked=False)
    each = [lane_bytes(x, donor, donor, 16, 4) for x in (plain, attacked)]
    assert each[0] < each[1]
    whole = [wave_bytes([x], donor, donor, 16, "fp32") for x in (plain, attacked)]
    assert whole[0] <= whole[1]  # a small lane needs less than its closed form did


def test_a_lane_whose_loss_ends_at_its_stitch_saves_no_tail():
    end, rule = facts(), protocol("fula-v2")
    cells = [Cell("a", "b", 1, 1, m, {m: 1.0}, rule) for m in ("hint", "fula", "tlm")]
    hint, fula, tlm = (lane_bytes(lane_of(cell), end, end, 128, 4) for cell in cells)
    assert fula == tlm and 3 * hint.training < fula.training
    assert (hint.own, hint.passing) == (fula.own, fula.passing)
    attacked = lane_of(replace(cells[0], alpha=0.5))  # its images are sought through the tail
    assert lane_bytes(attacked, end, end, 128, 4).training > fula.training


def test_lanes_that_take_turns_need_the_memory_of_the_largest():
    """Own parameters stay; a CPU's allocator scatters what turns of unlike sizes free."""
    one, many = [[10, 5, 1000, 300]], [[1, 1, 100, 30], [4, 2, 150, 45], [5, 2, 750, 225]]
    assert lanes_bytes(one) == 10 + 1600
    assert lanes_bytes([[10, 5000, 1000, 300]]) == 10 + 5000 + 480
    assert lanes_bytes(many) == 10 + 1600  # never more than in one turn
    assert lanes_bytes(many, "cuda:0") == 10 + 1200
    even = [[5, 0, 100, 0]] * 10
    assert lanes_bytes(even) == 50 + 225 and lanes_bytes(even, "cuda") == 50 + 160
    assert turn_room(50, 275) == 100 and turn_room(50, 210, "cuda") == 100


def test_this_processs_memory_is_that_of_its_pages(tmp_path):
    import mmap

    from fula_fast.device.memory import used_memory

    before, size = used_memory(), 2**27
    with mmap.mmap(-1, size) as held:  # from the system, whatever the heap has kept
        held.write(b"x" * size)
        assert 0.9 * size < used_memory() - before < 2.5 * size
    assert used_memory(tmp_path) is None
