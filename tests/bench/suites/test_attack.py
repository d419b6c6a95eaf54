"""The attack benchmark's cases: on which images they run, and what is made of their times."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("torchvision")
from fula_fast.bench.suites import attack


@dataclass
class Images:
    """So many images, somewhere."""

    count: int
    device: torch.device

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, wanted: slice) -> Images:
        return Images(min(wanted.stop, self.count), self.device)


def setup_of(images: int, device: str) -> attack.Setup:
    x = Images(images, torch.device(device))
    return attack.Setup(None, x, x)


@pytest.mark.parametrize(
    ("images", "device", "batches"),
    [
        (1024, "cuda", [128, 1024]), (512, "cuda", [128, 512]), (64, "cuda", [64]),
        (128, "cpu", [32]), (8, "cpu", [8]),
    ],
)  # fmt: skip
def test_pgd_runs_on_batches_of_128_and_1024(images, device, batches):
    assert attack._pgd_batches(setup_of(images, device)) == batches


@pytest.mark.parametrize(("device", "counts"), [("cpu", [32, 32, 8]), ("cuda", [32, 32, 32])])
def test_a_cpu_attacks_few_images_to_the_end(device, counts):
    assert [len(attack._few(setup_of(32, device), eps).x) for eps in attack.EPS] == counts


def test_a_row_of_rand(monkeypatch):
    """Times are given: the reference's and the plain loop's are extrapolated from one gradient."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10)).eval()
    x = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        setup = attack.Setup(net, x, net(x).argmax(1))
    times = {"ours": 2.0, "eager own": 3.0, "reference": 36.0}

    def given(cases, rounds, device):
        for name in ("ours", "eager own"):
            cases[name]()
        return {name: [times[name]] * rounds for name in cases}

    monkeypatch.setattr(attack, "in_turns", given)
    row = attack._rand_row(setup, 2, 8 / 255)
    survivors = row["robust"]
    assert row["correct"] == 12 and 0 <= survivors <= 12
    looks = (12 + survivors) * 101
    assert row["gradients"]["reference"] == looks * 20
    assert row["reference seconds, extrapolated"]["p50"] == pytest.approx(looks * 20)  # 1 s each
    few = row["eager own seconds per gradient"]["p50"]
    own = row["eager own seconds, extrapolated"]["p50"]
    assert 3.0 / (12 * 2 * 3 + 8 * 2) <= few <= 3.0 / (12 * 3)
    assert own == pytest.approx(looks * few)
    assert row["speedup"] == {"ours": pytest.approx(looks * 10)}
    assert row["speed over eager own"] == {"ours": pytest.approx(own / 2)}
    assert row["share of flags equal to ours"] == {"ours": 1.0}
