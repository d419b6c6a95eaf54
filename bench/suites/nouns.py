"""Every noun once on this device against its reference in float64: the first question on a new GPU.

    python -m fula_fast.bench.suites.nouns --out nouns.json

Inputs are drawn anew from --seed, rounded to the tested dtype, and given in float64 to the noun's
reference on the CPU. Outputs and gradients may differ by TOLERANCE in ||ours - ref|| / ||ref||
(NaN never passes). A noun that cannot run stops no other; the JSON is written after each.
Exit code 1 where one failed. Needs torch, triton and NumPy only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fula_fast import kernels
from fula_fast.bench.harness.record import RESULTS, environment, parser_of, write
from fula_fast.errors import not_none
from fula_fast.kernels import backend

LANES, BATCH = 4, 16
SITES = {"16x16": (128, 16), "4x4": (512, 4)}
"""Channels and size: the fused gradient of `stitch_hint`, and that by way of the residual."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "exact": 0.0}
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """A noun's call and its tensors on the CPU: floating ones in float64, of which `maps` are kept
    in the tested dtype, others in float32; those of `learnt` have gradients."""

    call: Callable[[Tensors], Sequence[Tensor]]
    tensors: Tensors
    maps: Sequence[str] = ()
    learnt: Sequence[str] = ()


def _map(lanes: int, channels: int, size: int) -> Tensor:
    x = torch.randn(lanes * BATCH, channels, size, size, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


def _off_the_corner(z: Tensor) -> Tensor:
    """What moves z to where ReLU's gradient does not hang on its rounding in float32."""
    return torch.where(z.abs() < 1e-3, 2e-3, 0.0)


def stitch_hint(site: str) -> Trial:
    """Two lanes of each of two fronts, one target, y written."""
    channels, size = SITES[site]
    x, target = (_map(n, channels, size) for n in (2, 1))
    tensors = {
        "x": x.unflatten(0, (2, BATCH)), "target": target[None],
        "weight": torch.randn(LANES, channels, channels, dtype=torch.float64) / channels**0.5,
        "bias": torch.randn(LANES, channels, dtype=torch.float64),
    }  # fmt: skip

    def call(t: Tensors) -> Sequence[Tensor]:
        found = kernels.stitch_hint(
            t["x"], t["weight"], t["bias"], [0, 0, 1, 1], t["target"], [0] * LANES
        )
        return [y for y in found if y is not None]

    return Trial(call, tensors, ("x", "target"), ("weight", "bias"))


def lane_norm(site: str) -> Trial:
    """Training, with residual, ReLU and target."""
    channels, size = SITES[site]
    x, residual = (_map(LANES, channels, size) for _ in range(2))
    weight, bias = torch.rand(2, channels, dtype=torch.float64) + 0.5
    lanes = [
        functional.batch_norm(part, None, None, weight, bias, training=True)
        for part in x.chunk(LANES)
    ]
    residual += _off_the_corner(torch.cat(lanes) + residual)
    tensors = {"x": x, "residual": residual, "target": _map(1, channels, size)}
    tensors |= {"weight": weight, "bias": bias}

    def call(t: Tensors) -> Sequence[Tensor]:
        running = torch.ones(2, LANES, channels, device=t["x"].device, dtype=t["weight"].dtype)
        y, mean, var, dist2 = kernels.lane_norm(
            t["x"], t["weight"], t["bias"], *running, lanes=LANES, training=True, eps=1e-5,
            residual=t["residual"], relu=True, target=t["target"],
        )  # fmt: skip
        return [y, not_none(dist2), mean, var]

    return Trial(call, tensors, ("x", "residual", "target"), ("x", "residual"))


def lane_conv(site: str) -> Trial:
    """3x3 behind a norm, with its output's statistics."""
    channels, size = SITES[site]
    weight = torch.randn(channels, channels, 3, 3, dtype=torch.float64) / (3 * channels**0.5)
    norm = torch.rand(4, channels, dtype=torch.float64) + 0.5
    gain, bias, mean, var = norm
    x = _map(LANES, channels, size)
    corner = _off_the_corner(functional.batch_norm(x, mean, var, gain, bias))
    x += corner * (var.sqrt() / gain)[:, None, None]
    tensors = {"x": x, "weight": weight, "gain": gain, "bias": bias}
    moments = {"mean": mean.repeat(LANES, 1), "var": var.repeat(LANES, 1)}

    def call(t: Tensors) -> Sequence[Tensor]:
        return kernels.lane_conv(
            t["x"], t["weight"], lanes=LANES, padding=1, eps=1e-5,
            gain=t["gain"], bias=t["bias"], mean=t["mean"], var=t["var"],
        )  # fmt: skip

    return Trial(call, tensors | moments, ("x", "weight"), ("x", "mean", "var"))


def hint_terms(site: str) -> Trial:
    """Two depths."""
    channels, size = SITES[site]
    tensors = {"x": _map(LANES, channels, size), "target": _map(1, channels, size)}

    def call(t: Tensors) -> Sequence[Tensor]:
        return kernels.hint_terms([t["x"], t["x"] * 2], [t["target"], t["target"]])

    return Trial(call, tensors, ("x", "target"), ("x",))


def pgd_step(norm: str) -> Trial:
    """Pixels near their clean ones."""
    clean = torch.rand(BATCH, 3, 32, 32, dtype=torch.float64)
    moved = (clean + 0.03 * torch.randn_like(clean)).clamp(0, 1)
    tensors = {"x": moved, "clean": clean, "grad": torch.randn_like(clean)}
    step, eps = (2 / 255, 8 / 255) if norm == "linf" else (0.1, 0.5)
    return Trial(
        lambda t: [kernels.pgd_step(t["x"], t["grad"], t["clean"], step, eps, norm)], tensors
    )


def augment() -> Trial:
    """A batch of 64 from 300 images."""
    tensors = {
        "images": torch.randint(0, 256, (300, 32, 32, 3), dtype=torch.uint8),
        "index": torch.randperm(300)[:64],
        "dy": torch.randint(0, 9, (300,), dtype=torch.int32),
        "dx": torch.randint(0, 9, (300,), dtype=torch.int32),
        "flip": torch.rand(300) > 0.5,
    }
    return Trial(
        lambda t: [kernels.augment(*(t[n] for n in ("images", "index", "dy", "dx", "flip")), 4)],
        tensors,
    )


def gram() -> Trial:
    """Two thousand rows."""
    tensors = {"x": torch.randn(2000, 64, dtype=torch.float64), "y": torch.randn(2000, 32).double()}
    return Trial(lambda t: kernels.gram(t["x"], t["y"]), tensors, ("x", "y"))


def trials() -> Iterator[tuple[str, str, Callable[[], Trial]]]:
    """Name, dtype, and what makes the trial."""
    for noun in (stitch_hint, lane_norm, lane_conv, hint_terms):
        for site in SITES:
            for dtype in DTYPES:
                yield f"{noun.__name__} {site}", dtype, partial(noun, site)
    for norm in ("linf", "l2"):
        yield f"pgd_step {norm}", "fp32", partial(pgd_step, norm)
    yield "augment", "exact", augment
    yield "gram", "fp32", gram


def errors(trial: Trial, dtype: str, device: str) -> list[float]:
    """Relative error of every output and gradient."""
    rounded = {name: _rounded(trial, name, dtype) for name in trial.tensors}
    exact = {n: t.double() if t.is_floating_point() else t for n, t in rounded.items()}
    with backend.using("reference"):
        expected = _results(trial, exact, "cpu")
    found = _results(trial, rounded, device)
    return [_distance(a, b) for a, b in zip(found, expected, strict=True)]


def _rounded(trial: Trial, name: str, dtype: str) -> Tensor:
    tensor = trial.tensors[name]
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(DTYPES.get(dtype, torch.float32) if name in trial.maps else torch.float32)


def _results(trial: Trial, tensors: Tensors, device: str) -> list[Tensor]:
    """Outputs, then gradients of their weighted sum, on the CPU in float64."""
    placed = {
        name: t.detach().clone().to(device).requires_grad_(name in trial.learnt)
        for name, t in tensors.items()
    }
    outputs = list(trial.call(placed))
    if trial.learnt:
        with_gradient = [y for y in outputs if y.requires_grad]
        incoming = [_incoming(y) for y in with_gradient]
        learnt = [placed[name] for name in trial.learnt]
        outputs += torch.autograd.grad(with_gradient, learnt, incoming)
    return [y.detach().cpu().double() for y in outputs]


def _incoming(y: Tensor) -> Tensor:
    """The same numbers for every dtype and device, up to its rounding."""
    draw = torch.Generator().manual_seed(y.numel())
    dy = torch.rand(y.shape, generator=draw).bfloat16().to(y.device, y.dtype)
    return dy.contiguous(memory_format=torch.channels_last) if dy.dim() == 4 else dy


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def measure(device: str) -> Iterator[dict[str, Any]]:
    """A row each."""
    for name, dtype, make in trials():
        row = {"noun": name, "dtype": dtype, "tolerance": TOLERANCE[dtype]}
        try:
            found = errors(make(), dtype, device)
        except Exception as error:  # noqa: BLE001  of any library below: it shall cost no other row
            reason = " ".join(str(error).split())[:300]
            yield row | {"passed": False, "failed": f"{type(error).__name__}: {reason}"}
            continue
        # NaN is no error that is small enough, and no number in JSON
        passed = all(value <= TOLERANCE[dtype] for value in found)
        yield row | {"passed": passed, "errors": [f"{value:.1e}" for value in found]}


def main(arguments: Sequence[str]) -> None:
    """Check, print, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=torch.seed() % 2**31, help="default: any")
    parser.add_argument("--out", type=Path, default=RESULTS / "nouns.json")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    rows: list[dict[str, Any]] = []
    head = environment(options.device, f"python -m {__spec__.name} --seed {options.seed}")
    for row in measure(options.device):
        rows.append(row)
        said = " ".join(row.get("errors", [row.get("failed", "")]))
        print(f"{row['noun']:20}{row['dtype']:6}{'ok' if row['passed'] else 'FAILED':8}{said}")
        right = sum(r["passed"] for r in rows)
        figure = {"figure": "nouns equal to their references", "value": right, "target": len(rows)}
        write(options.out, {"bench": "nouns", **head, "summary": [figure], "rows": rows})
    print(sum(row["passed"] for row in rows), "of", len(rows), "equal their references")
    sys.exit(not all(row["passed"] for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
