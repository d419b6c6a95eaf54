"""What this GPU can do, as the roofline model needs it: `harness.roofline` holds an H100's.

    python -m fula_fast.bench.suites.ceilings

A large copy (bytes read and written), a large matrix product, a launch within a graph, and every
convolution of ResNet-18 at --images images in bfloat16, forward and backward of the input: the
operators that a step calls, on tensors several times the size of the L2 cache. Beside each of the
latter, from 64 channels on, `lane_conv` with all that it does for fused blocks: the ratio of the
rates is what `harness.roofline` assumes as `fused`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fula_fast import kernels
from fula_fast.bench.harness.record import (
    RESULTS,
    captured,
    copy_rate,
    environment,
    matrix_rate,
    parser_of,
    quantiles,
    seconds_of,
    write,
)

CONVOLUTIONS = (
    (3, 64, 32, 1, 3), (64, 64, 32, 1, 3), (64, 128, 32, 2, 3), (64, 128, 32, 2, 1),
    (128, 128, 16, 1, 3), (128, 256, 16, 2, 3), (128, 256, 16, 2, 1), (256, 256, 8, 1, 3),
    (256, 512, 8, 2, 3), (256, 512, 8, 2, 1), (512, 512, 4, 1, 3),
)  # fmt: skip
"""Channels in and out, pixels a side, stride, kernel."""
FUSED, BATCH = 64, 128
"""Channels from which `lane_conv` is measured; images of one of its lanes."""
REPEATS, LAUNCHES = 20, 1000
Row = dict[str, Any]


def launch_rate() -> float:
    """Kernels a second: a thousand of one block each, replayed."""
    x = torch.zeros(32, device="cuda")
    replay, _ = captured(lambda: [x.add_(1) for _ in range(LAUNCHES)][0])
    return LAUNCHES / quantiles(seconds_of(lambda _: replay(), REPEATS, "cuda", 3))["p50"]


def convolutions(images: int) -> Iterator[Row]:
    """Each forward, and backward of its input."""
    for given, made, size, stride, kernel in CONVOLUTIONS:
        x, weight = _map(images, given, size), _map(made, given, kernel)
        forward = partial(_convolved, x, weight, stride)
        dy = torch.randn_like(forward())
        backward = partial(_gradient, dy, x, weight, stride)
        work = 2 * dy.numel() * given * kernel**2
        name = f"{given}->{made}, {size}x{size}, stride {stride}, {kernel}x{kernel}"
        calls = {"forward": forward, "backward": backward}
        if given >= FUSED:
            calls |= fused(x, weight, stride)
        for way, call in calls.items():
            taken = quantiles(seconds_of(lambda _, call=call: call(), REPEATS, "cuda", 3))
            yield _row(f"convolution {name}, {way}", work / taken["p50"], "FLOP/s") | taken


def fused(x: Tensor, weight: Tensor, stride: int) -> dict[str, Callable[[], object]]:
    """`lane_conv` of x (N, C, H, W) and weight (C2, C, k, k) behind a norm, and its gradient with
    those of both norms' statistics."""
    lanes, channels = len(x) // BATCH, x.shape[1]
    gain, bias = torch.rand(2, channels, device=x.device)
    mean, var = (torch.rand(2, lanes, channels, device=x.device) + 0.5).requires_grad_()
    x = x.detach().requires_grad_()
    forward = partial(
        kernels.lane_conv, x, weight, lanes=lanes, stride=stride, padding=weight.shape[-1] // 2,
        gain=gain, bias=bias, mean=mean, var=var,
    )  # fmt: skip
    found = forward()
    incoming = [torch.randn_like(y) for y in found]
    backward = partial(torch.autograd.grad, found, (x, mean, var), incoming, retain_graph=True)
    return {"forward, fused": forward, "backward, fused": backward}


def _map(*shape: int) -> Tensor:
    count, channels, size = shape
    x = torch.randn(count, channels, size, size, device="cuda", dtype=torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last)


def _convolved(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return torch.nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def _gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    padding = [weight.shape[-1] // 2] * 2
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], 1, (True, False, False)
    )[0]


def _row(name: str, rate: float, unit: str) -> Row:
    return {"of": name, "rate": rate, "unit": unit}


def rows(images: int) -> Iterator[Row]:
    """All."""
    yield _row("copy", copy_rate("cuda", 1 << 32), "bytes/s")
    yield _row("product", matrix_rate("cuda", torch.bfloat16, 8192), "FLOP/s")
    yield _row("launch", launch_rate(), "kernels/s")
    yield from convolutions(images)


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=9216, help="of a convolution")
    parser.add_argument("--out", type=Path, default=RESULTS / "ceilings.json")
    options = parser.parse_args(arguments)
    head = environment("cuda", f"python -m {__spec__.name} --images {options.images}")
    found: list[Row] = []
    for row in rows(options.images):
        print(f"{row['of']:56}{row['rate']:12.3e} {row['unit']}", flush=True)
        found.append(row)
        write(options.out, {"bench": "ceilings", **head, "summary": [], "rows": found})


if __name__ == "__main__":
    main(sys.argv[1:])
