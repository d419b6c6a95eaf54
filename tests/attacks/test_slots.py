"""Jobs in slots: padded or not, refilled or not, every job computes what it would alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fula_fast.attacks.apgd import APGDConfig, apgd
from fula_fast.attacks.names import CE, DLR, TARGETED, AttackStage
from fula_fast.attacks.packed import Single
from fula_fast.attacks.record import Record
from fula_fast.attacks.slots import Search, SearchOptions, fixed_sizes
from fula_fast.attacks.start_noise import start_noise
from fula_fast.device.graphs import Rerun

from .conftest import small_batch, small_net

STAGES = (AttackStage(CE), AttackStage(TARGETED, 3), AttackStage(DLR))
CONFIG = APGDConfig("linf", 0.02, 15)


def starts(stage, lane, images):
    return start_noise("linf", images, (3, 8, 8), seed=0, stream=stage)


def search(net, x, labels, **options):
    model = Single(net)
    record = Record(model, x, labels, batch_size=8, keep_images=True)
    chosen = {"keep_first": True, "packing": True, "recorder": None, "poll": 1, **options}
    runner = Search(model, record, CONFIG, STAGES, starts, SearchOptions(**chosen))
    runner.run(record.surviving())
    return record


def one_by_one(net, x, labels):
    """Which stage fools each image (None: no stage), with the first image that does."""
    found = []
    for i in range(len(x)):
        part, label = x[i : i + 1], labels[i : i + 1]
        target = net(part).sort(1)[1][:, -3]
        found.append((None, None))
        for number, stage in enumerate(STAGES):
            outcome = apgd(
                net, part, label, CONFIG,
                noise=starts(number, 0, [i]).double(), loss=stage.loss, targets=target,
                keep_first=True,
            )  # fmt: skip
            if not outcome.robust:
                found[i] = (number, outcome.found[0])
                break
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": range(1, 8)},
        pytest.param({"sizes": fixed_sizes(12)}, marks=pytest.mark.slow),
        pytest.param({"sizes": [16]}, marks=pytest.mark.slow),
        {"sizes": fixed_sizes(12), "poll": 4},
        {"sizes": range(1, 6), "packing": False},
        {"sizes": fixed_sizes(12), "poll": 4, "recorder": Rerun()},
    ],
    ids=["exact", "few sizes", "padded", "polled", "unpacked", "recorded"],
)
def test_every_job_equals_its_own_run(options):
    net = small_net().double()
    x, labels = small_batch(net.float(), 25)
    net, x = net.double(), x.double()
    record = search(net, x, labels, **options)
    expected = one_by_one(net, x, labels)
    right = [i for i in range(25) if record.correct[0, i]]
    assert {expected[i][0] for i in right} >= {0, None}, "some fall at once, some never"
    for i in right:
        stage, image = expected[i]
        assert bool(record.fooled[0, i]) == (stage is not None)
        if image is not None:
            torch.testing.assert_close(record.found[0, i], image, rtol=0, atol=1e-9)
    assert not record.fooled[~record.correct].any()


def test_padding_is_not_counted():
    net = small_net().double()
    x, labels = small_batch(net.float(), 9)
    net, x = net.double(), x.double()
    exact = search(net, x, labels, sizes=range(1, 10))
    padded = search(net, x, labels, sizes=[32])
    assert exact.gradients.tolist() == padded.gradients.tolist()
    assert exact.verified.tolist() == padded.verified.tolist()


def test_an_image_that_the_exact_model_gets_right_goes_on():
    """A search model that errs everywhere never convinces: each job runs to its end."""
    net = small_net()
    x, labels = small_batch(net, 4)

    class Wrong(Single):
        def logits(self, z, lane):
            return -super().logits(z, lane)

    record = Record(Single(net), x, labels, batch_size=8, keep_images=True)
    config = APGDConfig("linf", 1e-5, 6)
    options = SearchOptions(keep_first=True, packing=True, sizes=range(1, 5), recorder=None, poll=1)
    Search(Wrong(net), record, config, STAGES[:2], starts, options).run(record.surviving())
    assert not record.fooled.any() and record.found == {}
    assert record.gradients.tolist() == [4 * 2 * 7]
    assert record.verified.tolist() == [4 * 2 * 7], "asked for at every look"


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, 100, 512])
def test_fixed_sizes_are_few_and_close(batch_size, halves):
    found = fixed_sizes(batch_size, halves=halves)
    assert found[-1] == batch_size and found == sorted(set(found)) and found[0] >= 1
    assert len(found) <= (7 if halves else 14)
    for smaller, larger in pairwise(found):
        assert larger <= 2 * smaller + halves
