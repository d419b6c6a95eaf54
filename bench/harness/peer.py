"""The peers that the engine is measured against, and checked by: one stitch at a time, eagerly.

`PublishedPeer` is how such code is usually written, the FuLA authors' own included: hooks on both
whole networks. `FairPeer` is what a careful engineer makes of it without an engine. Both train by
the published settings (preset `fula-v1`: Adam 1e-3 with L2 1e-4, constant rate, batch statistics),
and share no arithmetic with the engine or the solo executor: losses, stitch, batch-norm rules and
optimiser are written here from the protocol. Models without dropout only.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fula_fast.models import Staged

METHODS = ("hint", "slm", "tlm", "fula")


class AffineMap(nn.Module):
    """The front's map resized to the end's, then a 1x1 convolution with bias, in this order.

    `weight` (C2, C1) and `bias` (C2,) are the start; `size` is the end map's (H, W).
    """

    def __init__(self, weight: Tensor, bias: Tensor, size: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C1, H1, W1) to (B, C2, H2, W2)."""
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return F.conv2d(x, self.weight.to(x.dtype)[:, :, None, None], self.bias.to(x.dtype))


@dataclass(frozen=True)
class Passes:
    """What a step's forward passes gave, from the stitch's site to the last one.

    `stitched`, `native`: activations of the stitched model, and targets; `logits`, `native_logits`:
    (B, classes). A peer that skips what its method does not need leaves `native` short.
    """

    stitched: list[Tensor]
    native: list[Tensor]
    logits: Tensor
    native_logits: Tensor | None

    def terms(self) -> list[Tensor]:
        """||h - g||_F / ||g||_F at each site."""
        pairs = zip(self.stitched, self.native, strict=False)
        return [_norm(_wide(h) - _wide(g)) / _norm(_wide(g)) for h, g in pairs]


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _fula(passes: Passes, labels: Tensor) -> Tensor:
    return torch.stack(passes.terms()).mean()


def _hint(passes: Passes, labels: Tensor) -> Tensor:
    return passes.terms()[0]


def _slm(passes: Passes, labels: Tensor) -> Tensor:
    ours, theirs = (_wide(z).log_softmax(1) for z in (passes.logits, passes.native_logits))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _tlm(passes: Passes, labels: Tensor) -> Tensor:
    return F.cross_entropy(_wide(passes.logits), labels)


LOSSES: dict[str, Callable[[Passes, Tensor], Tensor]] = {
    "fula": _fula,
    "hint": _hint,
    "slm": _slm,
    "tlm": _tlm,
}


def numbers_of(dtype: torch.dtype) -> torch.dtype:
    """Of stitches and statistics beside activations of `dtype`: float32, or float64 with it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def copy_of(
    donor: Staged, *, dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> Staged:
    """A frozen copy on batch statistics, whose running ones follow; weights of convolutions and
    linear layers are of `dtype`."""
    model = copy.deepcopy(donor).requires_grad_(False).train().to(device, numbers_of(dtype))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype).to(memory_format=memory_format)
    return model


def native_copy_of(donor: Staged, **kind: Any) -> Staged:
    """A copy for targets: batch statistics, and nothing moves."""
    model = copy_of(donor, **kind)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    return model


class Peer(ABC):
    """One stitch in training between two donors, which are copied and never modified.

    `front_site`, `end_site`: from 1. `method`: hint, slm, tlm or fula. `weight` (C2, C1), `bias`
    (C2,): the initial stitch. `dtype`: of activations; the stitch and all statistics are float32,
    or float64 with it.
    """

    memory_format = torch.contiguous_format

    def __init__(
        self,
        front: Staged,
        end: Staged,
        front_site: int,
        end_site: int,
        method: str,
        weight: Tensor,
        bias: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.front_site, self.end_site, self.method = front_site, end_site, method
        self.dtype, self.device = dtype, torch.device(device)
        kind = {"dtype": dtype, "device": self.device, "memory_format": self.memory_format}
        self.front, self.end = copy_of(front, **kind), copy_of(end, **kind)
        self.native = native_copy_of(end, **kind)
        size = end.site_shapes[end_site - 1][1:]
        self.stitch = AffineMap(weight, bias, size).to(self.device, numbers_of(dtype))
        parameters = self.stitch.parameters()
        self.optimiser = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on images x (B, C, H, W) in [0, 1] with labels y (B,); returns the loss, ()."""
        passes = self.passes(x)
        loss = LOSSES[self.method](passes, y.to(self.device))
        self.update(loss)
        return loss.detach()

    @abstractmethod
    def passes(self, x: Tensor) -> Passes:
        """All forward passes of a step on x (B, C, H, W); running statistics of front and end
        follow."""

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser; loss ()."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()


class PublishedPeer(Peer):
    """Hooks on both whole networks: a full target pass, a full front pass, and a full end pass in
    which the hook at the end's site puts the stitched activation in the place of the end's own.

    Every site is kept by hooks in every pass. Donors' weights are frozen by `requires_grad` alone
    and only targets are detached. float32, contiguous; images are moved to the device here.
    """

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._front_sites = _tap(self.front)
        self._targets = _tap(self.native)
        front_sites, site, stitch = self._front_sites, self.front_site, self.stitch

        # It holds no reference to the peer: the end's network would then outlive it in a cycle.
        def replace(stage: nn.Module, inputs: tuple[Tensor], own: Tensor) -> Tensor:
            return stitch(front_sites[site - 1])

        self.end.stages[self.end_site - 1].register_forward_hook(replace)
        self._stitched = _tap(self.end)  # behind the hook above, so it keeps what that returns

    def passes(self, x: Tensor) -> Passes:
        x = x.to(self.device, self.dtype)
        native_logits = self.native(x)
        self.front(x)
        logits = self.end(x)
        native = [g.detach() for g in self._targets[self.end_site - 1 :]]
        return Passes(self._stitched[self.end_site - 1 :], native, logits, native_logits.detach())


def _tap(model: Staged) -> list[Tensor | None]:
    """A list that holds every site's activation of the model's latest pass."""
    kept: list[Tensor | None] = [None] * model.num_sites

    def keeper(index: int):
        def keep(stage: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            kept[index] = output

        return keep

    for index, stage in enumerate(model.stages):
        stage.register_forward_hook(keeper(index))
    return kept


class FairPeer(Peer):
    """The same training with nothing computed that its result does not need: the front up to its
    site, native targets only as deep as the loss looks, the tail alone, no gradient graph where no
    gradient is wanted; channels-last, and images expected on the device. bfloat16 by default.
    """

    memory_format = torch.channels_last

    def __init__(self, *arguments, dtype: torch.dtype = torch.bfloat16, **options) -> None:
        super().__init__(*arguments, dtype=dtype, **options)

    def passes(self, x: Tensor) -> Passes:
        x = x.to(self.dtype)
        with torch.no_grad():
            native, native_logits = self._native(x)
            a = self.front.run(x, 0, self.front_site)
        h = self.stitch(a)
        stitched = [h]
        # A Hint stitch learns nothing behind its site: the tail only moves its statistics there.
        with torch.set_grad_enabled(self.method != "hint"):
            for site in range(self.end_site, self.end.num_sites):
                h = self.end.run(h, site, site + 1)
                stitched.append(h)
            logits = self.end.head(h)
        return Passes(stitched, native, logits, native_logits)

    def _native(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """What the method compares with: activations as deep as it looks, or logits, or nothing."""
        if self.method in ("slm", "tlm"):
            return [], self.native(x) if self.method == "slm" else None
        last = self.end_site if self.method == "hint" else self.native.num_sites
        targets = [self.native.run(x, 0, self.end_site)]
        for site in range(self.end_site, last):
            targets.append(self.native.run(targets[-1], site, site + 1))
        return targets, None


PEERS: dict[str, type[Peer]] = {"published": PublishedPeer, "fair": FairPeer}
