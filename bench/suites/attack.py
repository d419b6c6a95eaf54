"""PGD-10 and AutoAttack "rand" against torchattacks and pyautoattack, on the robust CIFAR-10
network that pyautoattack ships and on real CIFAR-10 images (FULA_TEST_DATA).

    fula-fast bench attack                                   (pytest-benchmark)
    python -m fula_fast.bench.suites.attack --images 32 --rounds 3
        (JSON: n, p20, p50, p80 of each case)

PGD-10 runs on batches of 128 and 1,024 images (32 on a CPU), no more than there are. Targets. CUDA:
exact float32 PGD-10, captured, >= 1.2x the plain eager loop (both are bound by their convolutions),
with TF32 or bfloat16 gradients and its images verified in float32 >= 3x; "rand" in exact float32
>= 35x pyautoattack at 8/255 and 1/255, >= 18x at 0.25/255. CPU: "rand" >= 20x pyautoattack in
exact float32.

"rand" has three eps, as the gain depends on how many images leave early: at 8/255 nothing survives
on this network, at 1/255 a few do, and at 1/1020 most do (a CPU gets a quarter of the images).
pyautoattack takes a fixed number of gradients (20 EOT samples at 101 points for every image and
stage), so its time is that number times the time of one gradient in its own loop. "eager own" is
our own loop as one would write it: eager, and of all savings only that equal gradients are taken
once; its time too is its fixed number of gradients times that of one, from a few iterations. Both
are measured in the same run, in turns with ours, which runs to its end.

Equal results: PGD's are compared here with torchattacks' and the plain loop's; AutoAttack's flags
and images with pyautoattack's in `bench.agreement`, which runs the reference to its end and is a
part of gpu-check of its own.
"""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fula_fast.attacks import PGD, RobustResult, Savings, robust_evaluate
from fula_fast.attacks.fold import fold
from fula_fast.attacks.pgd import pgd
from fula_fast.bench.harness.record import (
    RESULTS,
    device_label,
    environment,
    parser_of,
    quantiles,
    seconds_of,
    write,
)
from fula_fast.device.precision import arithmetic, autocast
from fula_fast.errors import FulaError
from fula_fast.study.protocol import Attack

CUT_IMAGES = "cifar10-test-first.npz"
EPS = (8 / 255, 1 / 255, 0.25 / 255)
LOOKS, SAMPLES = 101, 20  # of the reference's "rand", per image and stage
_OFF = Savings(**{field.name: False for field in fields(Savings)})
_OWN = replace(_OFF, single_sample=True)


@dataclass(frozen=True)
class Setup:
    """The network in eval mode, images (N, 3, 32, 32) in [0, 1] and labels (N,), on one device."""

    net: nn.Module
    x: Tensor
    labels: Tensor

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.x.device


def load(images: int, device: str) -> Setup:
    """The shipped network and the first `images` test images, classes in turn."""
    x, labels = cifar_images(images)
    return Setup(robust_network().to(device), x.to(device), labels.to(device))


def robust_network() -> nn.Module:
    """The ResNet-18 for CIFAR-10 that pyautoattack ships, frozen, in eval mode."""
    import pyautoattack
    from torchvision.models import resnet18

    path = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
    state = torch.load(path, weights_only=True, map_location="cpu")
    net = resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    net.load_state_dict(
        {k.replace("shortcut", "downsample").replace("linear", "fc"): v for k, v in state.items()}
    )
    return net.eval().requires_grad_(False)


def cifar_images(count: int) -> tuple[Tensor, Tensor]:
    """The first `count` CIFAR-10 test images, classes in turn: (N, 3, 32, 32) in [0, 1], (N,).

    FULA_TEST_DATA holds the archive of all, or what `make gpu-visit` has cut out of it. Raises
    `FulaError` where it is unset, or holds fewer.
    """
    folder = os.environ.get("FULA_TEST_DATA")
    if not folder:
        raise FulaError("FULA_TEST_DATA is unset: it names the folder with cifar10-jpeg.tar.xz")
    cut = Path(folder) / CUT_IMAGES
    return _cut_images(cut, count) if cut.exists() else _archived_images(Path(folder), count)


def _cut_images(path: Path, count: int) -> tuple[Tensor, Tensor]:
    with np.load(path) as kept:
        pixels, labels = kept["pixels"][:count], kept["labels"][:count]
    if len(pixels) < count:
        raise FulaError(f"{path.name} holds {len(pixels)} images: ask for no more, not {count}")
    return torch.from_numpy(pixels.astype(np.float32) / 255), torch.from_numpy(labels)


def _archived_images(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    per_class, found = -(-count // 10), {}
    with tarfile.open(folder / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            path = Path(member.name)
            if path.parts[0] == "train" and len(found) == 10 * per_class:
                break  # the test images come first
            if member.isfile() and path.parts[0] == "test" and int(path.stem) < per_class:
                image = Image.open(BytesIO(archive.extractfile(member).read()))
                found[int(path.stem), path.parent.name] = np.asarray(image)
    classes = sorted({name for _, name in found})
    chosen = sorted(found)[:count]
    pixels = np.stack([found[key] for key in chosen]).astype(np.float32) / 255
    labels = torch.tensor([classes.index(name) for _, name in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def pgd_cases(setup: Setup) -> dict[str, Callable[[], Tensor]]:
    """PGD-10 three ways, on CUDA also with gradients in a narrower arithmetic and the images that
    they give verified in float32; each returns its adversarial images."""
    import torchattacks

    theirs = torchattacks.PGD(setup.net, random_start=False)
    ours = PGD(fold(setup.net, setup.x.shape[1:]), Attack())
    x, labels = setup.x, setup.labels
    cases = {
        "torchattacks": lambda: theirs(x, labels),
        "eager": lambda: pgd(setup.net, x, labels, Attack()),
        "ours": lambda: ours(x, labels),
    }
    if setup.device.type == "cuda":
        cases |= {f"ours {name}": narrow_pgd(setup, name) for name in ("tf32", "bf16")}
    return cases


def narrow_pgd(setup: Setup, precision: str) -> Callable[[], Tensor]:
    """PGD-10 by gradients in `precision`; its result is classified in float32, as for a flag."""
    net = fold(setup.net, setup.x.shape[1:])

    def logits(x: Tensor) -> Tensor:
        with autocast(setup.device, precision):
            return net(x).float()

    attack = PGD(logits, Attack())

    def run() -> Tensor:
        with arithmetic(precision):
            found = attack(setup.x, setup.labels)
        with torch.no_grad():
            net(found).argmax(1)
        return found

    return run


def rand_cases(setup: Setup, eps: float) -> dict[str, Callable[[], Any]]:
    """AutoAttack "rand": ours in full, and a few looks of the others."""
    rand = partial(robust_evaluate, setup.net, setup.x, setup.labels, "autoattack-rand", eps=eps)
    cases = {
        "ours": rand,
        "eager own": partial(rand, steps=FEW_STEPS, mode="eager", savings=_OWN),
        "reference": partial(_reference_looks, setup, eps),
    }
    if setup.device.type == "cuda":
        cases["ours bf16"] = partial(rand, precision="bf16")
    return cases


FEW_STEPS = 2


def _reference_looks(setup: Setup, eps: float) -> None:
    """The reference's own loop, cut to few iterations: FEW_STEPS + 1 gradients an image."""
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(
        setup.net, n_iter=FEW_STEPS, norm="Linf", eps=eps, seed=0, loss="ce", eot_iter=1,
        device=setup.device,
    )  # fmt: skip
    attack.init_hyperparam(setup.x)
    attack.attack_single_run(setup.x, setup.labels)


def reference_gradients(result: RobustResult) -> int:
    """The fewest gradients that the reference's "rand" takes with these flags: all rightly
    classified images in the first stage, and no fewer than the final survivors in the second."""
    return int(result.correct.sum() + result.robust.sum()) * LOOKS * SAMPLES


def check_savings(setup: Setup, eps: float) -> None:
    """Our flags with every saving and with none are equal (8 images, 5 steps, 2 samples).

    Raises `FulaError` where they are not.
    """
    x, labels = setup.x[:8], setup.labels[:8]
    attack = partial(robust_evaluate, setup.net, x, labels, "autoattack-rand", eps=eps, steps=5)
    (saved,), (plain,) = attack(), attack(eot=2, savings=_OFF)
    if not torch.equal(saved.robust, plain.robust):
        raise FulaError("the savings changed a flag")


def report(images: int, rounds: int, device: str) -> Iterator[dict[str, Any]]:
    """The report so far, after each row of cases that took turns."""
    setup, rows = load(images, device), []
    command = f"python -m fula_fast.bench.suites.attack --images {images} --rounds {rounds}"
    found = {
        "benchmark": "attack",
        "note": "cases took turns; hardware.load says what else ran",
        **environment(device, f"{command} --device {device}"),
        "rows": rows,
    }
    with arithmetic("fp32"):
        for batch in _pgd_batches(setup):
            rows.append(_pgd_row(first(setup, batch), rounds))
            yield found
    for eps in EPS:
        rows.append(_rand_row(_few(setup, eps), rounds, eps))
        yield found


def first(setup: Setup, count: int) -> Setup:
    """The same on the first `count` images."""
    return replace(setup, x=setup.x[:count], labels=setup.labels[:count])


def _few(setup: Setup, eps: float) -> Setup:
    """On a CPU a quarter of the images where most survive, and so are attacked to the end."""
    if setup.device.type == "cuda" or eps > EPS[-1]:
        return setup
    return first(setup, max(len(setup.x) // 4, 1))


def _pgd_batches(setup: Setup) -> list[int]:
    wanted = (128, 1024) if setup.device.type == "cuda" else (32,)
    return sorted({min(batch, len(setup.x)) for batch in wanted})


def _pgd_row(setup: Setup, rounds: int) -> dict[str, Any]:
    cases = pgd_cases(setup)
    results = {name: case() for name, case in cases.items()}  # warm-up, and the check below
    same = torch.equal(results["eager"], results["torchattacks"])
    moved = (results["ours"] - results["eager"]).abs().gt(1e-6).float().mean().item()
    times = in_turns(cases, rounds, setup.device)
    return {
        "case": f"pgd-10, batch {len(setup.x)}",
        "images": len(setup.x),
        "seconds": {name: quantiles(taken) for name, taken in times.items()},
        "eager equals torchattacks": same,
        "share of pixels that folding moves": moved,
        "speedup over eager": {
            name: ratio(times["eager"], taken)
            for name, taken in times.items()
            if name.startswith("ours")
        },
        "speedup over torchattacks": ratio(times["torchattacks"], times["ours"]),
    }


def _rand_row(setup: Setup, rounds: int, eps: float) -> dict[str, Any]:
    check_savings(setup, eps)
    cases = rand_cases(setup, eps)
    kept: dict[str, RobustResult] = {}
    for name in cases.keys() - {"reference"}:
        cases[name] = partial(_keep, kept, name, cases[name])
    times = in_turns(cases, rounds, setup.device)
    ours = kept["ours"]
    gradients = reference_gradients(ours)
    one = [t / (len(setup.x) * (FEW_STEPS + 1)) for t in times.pop("reference")]
    reference = [gradients * t for t in one]
    own = [t / kept["eager own"].gradients for t in times.pop("eager own")]
    eager = [gradients / SAMPLES * t for t in own]
    return {
        "case": f"autoattack-rand, eps {eps * 255:g}/255",
        "images": len(setup.x),
        "correct": int(ours.correct.sum()),
        "robust": int(ours.robust.sum()),
        "gradients": {"ours": ours.gradients, "reference": gradients},
        "verified": ours.verified,
        "mode": ours.mode,
        "seconds": {name: quantiles(taken) for name, taken in times.items()},
        "reference seconds per gradient": quantiles(one),
        "reference seconds, extrapolated": quantiles(reference),
        "speedup": {name: ratio(reference, taken) for name, taken in times.items()},
        "eager own seconds per gradient": quantiles(own),
        "eager own seconds, extrapolated": quantiles(eager),
        "speed over eager own": {name: ratio(eager, taken) for name, taken in times.items()},
        "share of flags equal to ours": {
            name: (kept[name].robust == ours.robust).double().mean().item() for name in times
        },
    }


def _keep(kept: dict[str, RobustResult], name: str, run: Callable[[], list[RobustResult]]) -> None:
    (kept[name],) = run()


def in_turns(
    cases: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each case, round by round, so that a busy machine is shared fairly."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name] += seconds_of(lambda _, case=case: case(), 1, device, warmup=0)
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of slow / fast."""
    return float(np.median([a / b for a, b in zip(slow, fast, strict=True)]))


@pytest.fixture(scope="module")
def setup() -> Setup:
    """32 images on the CPU, 1,024 on a GPU."""
    pytest.importorskip("pyautoattack")
    pytest.importorskip("torchattacks")
    if not os.environ.get("FULA_TEST_DATA"):
        pytest.skip("FULA_TEST_DATA is unset: no real images")
    cuda = torch.cuda.is_available()
    return load(1024 if cuda else 32, "cuda" if cuda else "cpu")


def _synchronised(setup: Setup, case: Callable[[], Any]) -> Any:
    result = case()
    if setup.device.type == "cuda":
        torch.cuda.synchronize()
    return result


@pytest.mark.parametrize("name", ["torchattacks", "eager", "ours"])
@pytest.mark.parametrize("batch", [32, 128, 1024])
def bench_pgd10(benchmark, setup, name, batch):
    """PGD-10 on one batch."""
    if batch > len(setup.x):
        pytest.skip(f"{len(setup.x)} images on this device")
    case = pgd_cases(first(setup, batch))[name]
    benchmark.pedantic(_synchronised, (setup, case), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("eps", EPS, ids=lambda eps: f"eps{eps * 255:g}")
def bench_rand(benchmark, setup, eps):
    """Ours in full; the extrapolated time of the reference stands in `extra_info`."""
    cases = rand_cases(setup, eps)
    (one,) = seconds_of(lambda _: cases["reference"](), 1, setup.device)
    (result,) = benchmark.pedantic(_synchronised, (setup, cases["ours"]), rounds=1)
    per_gradient = one / (len(setup.x) * (FEW_STEPS + 1))
    benchmark.extra_info["reference_seconds"] = per_gradient * reference_gradients(result)


def main(arguments: list[str]) -> None:
    """Run every case and write the JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    path = chosen.out or RESULTS / f"attack-{device_label(chosen.device)}.json"
    for found in report(chosen.images, chosen.rounds, chosen.device):
        write(path, found)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
