"""AutoAttack "rand" in full, by the reference package and by us, on the robust CIFAR-10 network
that pyautoattack ships and on real test images (FULA_TEST_DATA): flags, pixels, robust accuracy,
seconds.

    python -m fula_fast.bench.suites.agreement --images 128     (an hour and a half of one core)

What `bench attack` extrapolates is run here to its end. From the reference's own start points we
attack twice: with every saving off but one (equal gradients are taken once), where each adversarial
image must be the reference's, and with all of them on, where each flag must be. Targets: flags
equal on >= 99.8% of the images, robust accuracy within 0.2 points.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fula_fast.attacks import RobustResult, Savings, robust_evaluate
from fula_fast.bench.harness.record import RESULTS, device_label, environment, parser_of, write
from fula_fast.bench.suites.attack import Setup, load
from fula_fast.device.precision import arithmetic

SEED = 5
ALL_OFF = Savings(**{field.name: False for field in fields(Savings)})
RAND = ("apgd-ce", "apgd-dlr")
_NORMS = {"linf": "Linf", "l2": "L2"}


def reference(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    attacks: Sequence[str],
    norm: str,
    eps: float,
    *,
    eot: int = 1,
    steps: int = 100,
    classes: int = 10,
    batch_size: int = 250,
) -> tuple[Tensor, Tensor]:
    """pyautoattack's adversarial images and flags, its published checkpoints scaled to `steps`.

    x (N, C, H, W), labels (N,); the same and bool (N,).
    """
    from pyautoattack import AutoAttack

    runner = AutoAttack(
        net, norm=_NORMS[norm], eps=eps, seed=SEED, version="standard", device=x.device
    )
    runner.attacks_to_run = list(attacks)
    runner.apgd.eot_iter = eot
    for attack in (runner.apgd, runner.apgd_targeted):
        attack.n_iter = steps
        attack.n_iter_2 = max(int(0.22 * steps), 1)
        attack.n_iter_min = max(int(0.06 * steps), 1)
        attack.size_decr = max(int(0.03 * steps), 1)
    runner.apgd_targeted.n_target_classes = min(9, classes - 1)
    found, _ = runner.run_standard_evaluation(x, labels, batch_size=batch_size)
    with torch.no_grad():
        return found, net(found).argmax(1) == labels


def reference_starts(shape: Sequence[int], norm: str) -> Callable[..., Tensor]:
    """The start points of the reference, which seeds its generator anew for every batch."""

    def starts(stage: int, lane: int, images: Tensor) -> Tensor:
        torch.manual_seed(SEED)
        size = (len(images), *shape)
        return 2 * torch.rand(size) - 1 if norm == "linf" else torch.randn(size)

    return starts


def compare(setup: Setup, eps: float, eot: int, steps: int) -> dict[str, Any]:
    """One row: who found what, and how long it took (one run each)."""
    short = {"eot": eot, "steps": steps, "batch_size": len(setup.x)}

    def ours(**savings: Any) -> RobustResult:
        starts = reference_starts(setup.x.shape[1:], "linf")
        (result,) = robust_evaluate(
            setup.net, setup.x, setup.labels, "autoattack-rand", eps=eps, keep_images=True,
            starts=starts, **short, **savings,
        )  # fmt: skip
        return result

    saved, saved_seconds = _timed(setup, ours)
    plain, plain_seconds = _timed(setup, lambda: ours(savings=ALL_OFF, single_sample=True))
    (found, robust), reference_seconds = _timed(
        setup, lambda: reference(setup.net, setup.x, setup.labels, RAND, "linf", eps, **short)
    )
    found, robust = found.cpu(), robust.cpu()
    return {
        "case": f"autoattack-rand, eps {eps * 255:g}/255",
        "images": len(setup.x),
        "eot": eot,
        "steps": steps,
        "correct": int(plain.correct.sum()),
        "robust": {"reference": int(robust.sum()), "ours": int(saved.robust.sum())},
        "share of flags equal": _share(saved.robust.cpu() == robust),
        "share of flags equal, savings off": _share(plain.robust.cpu() == robust),
        "share of images equal, savings off": _share(
            (plain.adversarial.cpu() == found).flatten(1).all(1)
        ),
        "seconds": {
            "ours": saved_seconds,
            "ours, savings off": plain_seconds,
            "reference": reference_seconds,
        },
        "speedup": reference_seconds / saved_seconds,
    }


def summary(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that have targets."""
    robust = row["robust"]
    apart = abs(robust["ours"] - robust["reference"]) / row["images"]
    found = [
        ("share of flags equal to pyautoattack's", row["share of flags equal"], 0.998),
        ("1 - difference of robust accuracies", 1 - apart, 0.998),
        (
            "images equal to the last bit, savings off",
            row["share of images equal, savings off"],
            None,
        ),
    ]
    return [
        {"figure": f"{row['case']}, {figure}", "value": value, "target": target}
        for figure, value, target in found
    ]


def _share(equal: Tensor) -> float:
    return equal.double().mean().item()


def _timed(setup: Setup, work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    with arithmetic("fp32"):
        result = work()
    if setup.device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - began


def main(arguments: list[str]) -> None:
    """Compare at every eps and write the JSON, anew after each."""
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--eps", type=float, nargs="+", default=[1.0], help="in 255ths")
    parser.add_argument("--eot", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    setup, rows = load(chosen.images, chosen.device), []
    command = " ".join(["python -m fula_fast.bench.suites.agreement", *arguments])
    found = {
        "benchmark": "agreement",
        "note": "one run each; hardware.load says what else ran",
        **environment(chosen.device, command),
        "summary": [],
        "rows": rows,
    }
    path = chosen.out or RESULTS / f"agreement-{device_label(chosen.device)}.json"
    for eps in chosen.eps:
        rows.append(compare(setup, eps / 255, chosen.eot, chosen.steps))
        found["summary"] += summary(rows[-1])
        write(path, found)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
