"""What each noun is given at a case of its benchmark, and the bytes and FLOPs that it must move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fula_fast import kernels
from fula_fast.bench.harness.kernel_cases import SITES, Case


@dataclass(frozen=True)
class Work:
    """A noun made ready: `call(*inputs)` gives outputs, whose gradients are `incoming`."""

    call: Callable[..., list[Tensor]]
    inputs: list[Tensor]
    incoming: list[Tensor]
    bytes: dict[str, int]
    flops: dict[str, int]


def _costs(forward: int, backward: int) -> dict[str, int]:
    return {"forward": forward, "backward": backward, "both": forward + backward}


def lane_norm(case: Case) -> Work:
    """Training-mode norm with residual, ReLU and term: a residual block's last layer."""
    channels = SITES[case.site][0]
    x, residual = (case.activations(case.lanes).requires_grad_() for _ in range(2))
    target, dy = case.activations(1), case.activations(case.lanes)
    sums = partial(torch.rand, device=case.device)
    weight, bias, running = sums(channels), sums(channels), sums(2, case.lanes, channels)

    def call(x: Tensor, residual: Tensor) -> list[Tensor]:
        y, _, _, dist2 = kernels.lane_norm(
            x, weight, bias, running[0], running[1], lanes=case.lanes, training=True, eps=1e-5,
            residual=residual, relu=True, target=target,
        )  # fmt: skip
        return [y, dist2]

    lane, shared = case.tensor_bytes * case.lanes, case.tensor_bytes
    # forward: x for the statistics, x and residual, y; backward: x, residual, dy, d out, then
    # x, d, dx
    traffic = _costs(4 * lane + shared, 7 * lane + shared)
    return Work(call, [x, residual], [dy, sums(case.lanes, case.batch)], traffic, _costs(0, 0))


def hint_terms(case: Case) -> Work:
    """Distances of all lanes to a shared target."""
    x, target = case.activations(case.lanes).requires_grad_(), case.activations(1)

    def call(x: Tensor) -> list[Tensor]:
        return kernels.hint_terms([x], [target])

    lane, shared = case.tensor_bytes * case.lanes, case.tensor_bytes
    share = torch.rand(case.lanes, case.batch, device=case.device)
    return Work(call, [x], [share], _costs(lane + shared, 2 * lane + shared), _costs(0, 0))


def stitch_hint(case: Case, write: bool = False) -> Work:
    """Stitches of lanes that share front and target, with the Hint term; y where `write`."""
    channels, size = SITES[case.site]
    x, target = case.activations(1)[None], case.activations(1)[None]
    weight = torch.randn(case.lanes, channels, channels, device=case.device) / channels**0.5
    bias = torch.zeros(case.lanes, channels, device=case.device)
    index = [0] * case.lanes

    def call(weight: Tensor, bias: Tensor) -> list[Tensor]:
        outputs = kernels.stitch_hint(x, weight, bias, index, target, index, write=write)
        return [y for y in outputs if y is not None]

    share = torch.rand(case.lanes, case.batch, device=case.device)
    incoming = [case.activations(case.lanes), share] if write else [share]
    shared, written = 2 * case.tensor_bytes, case.tensor_bytes * case.lanes * write
    maps = 4 * channels**2 * case.lanes
    product = 2 * case.lanes * case.batch * size**2 * channels**2
    traffic = _costs(shared + written + maps, shared + written + 2 * maps)
    return Work(
        call, [weight.requires_grad_(), bias.requires_grad_()], incoming, traffic,
        _costs(product, 2 * product),
    )  # fmt: skip


NOUNS: dict[str, Callable[[Case], Work]] = {
    "stitch_hint": stitch_hint,
    "lane_norm": lane_norm,
    "stitch_hint+y": partial(stitch_hint, write=True),
    "hint_terms": hint_terms,
}


def pixels(noun: str, device: str, batch: int = 128) -> Work:
    """`pgd_step` or `augment` on CIFAR-10 images."""
    if noun == "augment":
        images = torch.randint(0, 256, (2048, 32, 32, 3), dtype=torch.uint8, device=device)
        index = torch.randperm(2048, device=device)[:batch]
        draws = [torch.randint(0, 9, (2048,), device=device, dtype=torch.int32) for _ in range(2)]
        flip = torch.rand(2048, device=device) > 0.5
        call = partial(kernels.augment, images, index, *draws, flip, 4)
        return Work(lambda: [call()], [], [], _costs(batch * 3072 * 5, 0), _costs(0, 0))
    x, grad, clean = torch.rand(3, batch, 3, 32, 32, device=device)
    norm = noun.removeprefix("pgd_step ")
    call = partial(kernels.pgd_step, x, grad - 0.5, clean, 2 / 255, 8 / 255, norm)
    return Work(lambda: [call()], [], [], _costs(batch * 3072 * 16, 0), _costs(0, 0))
