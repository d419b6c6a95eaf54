"""The peer that trains all lanes at once without an engine: `torch.func.vmap`.

Written as somebody would who knows both the method and torch.func: the front and the targets are
computed once, outside the vmap, and shared; the lanes' stitches are stacked, and so are the running
statistics of their tails, which `functional_call` puts into the tail's batch norms (vmap lets a
norm move stacked statistics in place); lanes that enter the end at one site run in one vmap, apart
by what their loss looks at; each vmap's backward follows its forward, so that one graph is held at
a time; one fused Adam step moves all stacked parameters.

bfloat16 is cast by hand, as in the engine: stitches, running statistics and losses are float32.
Batch norm is where that needs care, because vmap's rule for it knows no mixed precision: it refuses
float32 statistics beside a bfloat16 map, and float32 weights turn its output into float32, which
the next convolution refuses. See `StackedNorm`.

Like the other peers it trains by the preset `fula-v1`, shares no arithmetic with the engine, and
knows models without dropout only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fula_fast.bench.harness.peer import copy_of, native_copy_of, numbers_of
from fula_fast.errors import not_none
from fula_fast.models import Staged

# Methods whose lanes share a vmap: Hint needs no gradient behind its site, FuLA every site's term,
# SLM and TLM logits alone.
_TOGETHER = (("hint",), ("fula",), ("slm", "tlm"))


@dataclass(frozen=True)
class LaneOf:
    """What one lane trains: sites from 1, a method, its start `weight` (C2, C1), `bias` (C2,)."""

    front_site: int
    end_site: int
    method: str
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Targets:
    """The native pass that all lanes share: activations of all sites with their Frobenius norms,
    and logits' log-softmax (B, classes), without a gradient."""

    sites: list[Tensor]
    norms: list[Tensor]
    log_softmax: Tensor


class StackedNorm(nn.Module):
    """relu?(bn(x) + residual) of one lane inside a vmap, in the dtype of x (B, C, H, W).

    The batch's own mean and unbiased variance come from PyTorch's norm in that dtype (at momentum 1
    its running ones are those) and move the lane's, which stay wide.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.momentum, self.eps = not_none(norm.momentum), norm.eps
        self.register_buffer("weight", norm.weight.detach().to(dtype)[:, None, None])
        self.register_buffer("bias", norm.bias.detach().to(dtype)[:, None, None])
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        moving = self.running_mean, self.running_var
        batch = [torch.zeros_like(value, dtype=x.dtype) for value in moving]
        y = F.batch_norm(x, *batch, training=True, momentum=1, eps=self.eps)
        for value, new in zip(moving, batch, strict=True):
            value.mul_(1 - self.momentum).add_(new, alpha=self.momentum)
        y = y * self.weight + self.bias
        if residual is not None:
            y = y + residual
        return y.relu_() if relu else y


def _stack_norms(model: nn.Module, dtype: torch.dtype) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, StackedNorm(child, dtype))


class Tail(nn.Module):
    """The end behind a site: the site's activation to those from it to the last one, and logits."""

    def __init__(self, end: Staged, end_site: int) -> None:
        super().__init__()
        self.stages = end.stages[end_site:]
        self.head = end.head

    def forward(self, h: Tensor) -> tuple[list[Tensor], Tensor]:
        """Activations from `h` (N, C, H, W) on, and logits (N, classes)."""
        stitched = [h]
        for stage in self.stages:
            stitched.append(stage(stitched[-1]))
        return stitched, self.head(stitched[-1])

    def statistics(self) -> dict[str, Tensor]:
        """Running means and variances by name."""
        kinds = ("running_mean", "running_var")
        return {name: value for name, value in self.named_buffers() if name.endswith(kinds)}


class VmapGroup:
    """Lanes in one vmap: one end site, and `methods` that look at the same things.

    `numbers`: lanes' places in the peer's list, by front site. `weights`, `biases`: stacked
    parameters (n, C2, C1) and (n, C2) by front site. `statistics`: running ones, stacked (n, C).
    """

    def __init__(
        self, lanes: Sequence[LaneOf], numbers: Sequence[int], methods: Sequence[str], tail: Tail
    ) -> None:
        self.numbers = sorted(numbers, key=lambda n: lanes[n].front_site)
        self.end_site, self.methods, self.tail = lanes[numbers[0]].end_site, methods, tail
        layer = next(tail.parameters())  # at the last site there is the head alone, without norms
        device, kind = layer.device, numbers_of(layer.dtype)
        self.weights, self.biases = {}, {}
        for site, found in groupby(self.numbers, key=lambda n: lanes[n].front_site):
            own = [lanes[n] for n in found]
            self.weights[site] = _stacked([lane.weight for lane in own], device, kind)
            self.biases[site] = _stacked([lane.bias for lane in own], device, kind)
        shares = [[float(lanes[n].method == m) for m in methods] for n in self.numbers]
        self.shares = torch.tensor(shares, device=device, dtype=kind)
        self.statistics = {
            name: value.expand(len(numbers), -1).clone()
            for name, value in tail.statistics().items()
        }

    def parameters(self) -> list[nn.Parameter]:
        """All stacked parameters."""
        return [*self.weights.values(), *self.biases.values()]

    def losses(self, maps: Mapping[int, Tensor], targets: Targets, y: Tensor) -> Tensor:
        """(n,): `maps` holds the front's activation by site, in the end map's size."""
        stitched = [
            vmap(_stitch, in_dims=(None, 0, 0))(maps[site], weight, self.biases[site])
            for site, weight in self.weights.items()
        ]
        h = torch.cat(stitched) if len(stitched) > 1 else stitched[0]

        def loss(h: Tensor, statistics: dict[str, Tensor], shares: Tensor) -> Tensor:
            # A Hint stitch learns nothing behind its site: the tail only moves its statistics.
            with torch.set_grad_enabled("hint" not in self.methods):
                activations, logits = functional_call(self.tail, statistics, (h,))
            values = [_LOSSES[m](activations, logits, targets, y) for m in self.methods]
            return (torch.stack(values) * shares).sum()

        return vmap(loss)(h, self.statistics, self.shares)


def _stacked(values: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.stack([v.detach() for v in values]).to(device, dtype))


def _stitch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype)[:, :, None, None], bias.to(x.dtype))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _term(h: Tensor, targets: Targets, site: int) -> Tensor:
    """||h - g||_F / ||g||_F; `site` counts back from -1, the last one."""
    distance = torch.linalg.vector_norm(_wide(h) - _wide(targets.sites[site]))
    return distance / targets.norms[site]


def _slm(activations, logits: Tensor, targets: Targets, y: Tensor) -> Tensor:
    ours = _wide(logits).log_softmax(1)
    theirs = targets.log_softmax  # written out: vmap has no rule for kl_div and would loop
    return (theirs.exp() * (theirs - ours)).sum() / len(y)


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "hint": lambda activations, logits, targets, y: _term(
        activations[0], targets, -len(activations)
    ),
    "fula": lambda activations, logits, targets, y: torch.stack(
        [_term(h, targets, n - len(activations)) for n, h in enumerate(activations)]
    ).mean(),
    "slm": _slm,
    "tlm": lambda activations, logits, targets, y: F.cross_entropy(_wide(logits), y),
}


class VmapPeer:
    """All `lanes` between two donors, which are copied and never modified.

    `dtype`: of activations; stitches and all statistics are float32, or float64 with it. Images are
    expected on the device.
    """

    memory_format = torch.contiguous_format

    def __init__(
        self,
        front: Staged,
        end: Staged,
        lanes: Sequence[LaneOf],
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        kind = {"dtype": dtype, "device": self.device, "memory_format": self.memory_format}
        self.front, self.end = copy_of(front, **kind), copy_of(end, **kind)
        self.native = native_copy_of(end, **kind)
        _stack_norms(self.end, dtype)
        self.sizes = [shape[1:] for shape in end.site_shapes]
        self.groups = [
            VmapGroup(lanes, numbers, methods, Tail(self.end, site))
            for site in range(1, end.num_sites + 1)
            for methods in _TOGETHER
            if (numbers := _lanes_at(lanes, site, methods))
        ]
        parameters = [p for group in self.groups for p in group.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4, fused=True)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train all lanes on images x (B, C, H, W) in [0, 1], labels y (B,); the losses, (L,)."""
        x = x.to(self.dtype)
        with torch.no_grad():
            fronts, targets = self._fronts(x), self._targets(x)
        self.optimiser.zero_grad(set_to_none=True)
        losses: dict[int, Tensor] = {}
        for site, groups in groupby(self.groups, key=lambda group: group.end_site):
            maps = self._resized(fronts, site)
            for group in groups:
                found = group.losses(maps, targets, y)
                found.sum().backward()
                losses |= zip(group.numbers, found.detach(), strict=True)
        self.optimiser.step()
        return torch.stack([losses[number] for number in sorted(losses)])

    def _fronts(self, x: Tensor) -> dict[int, Tensor]:
        """The front's activations at the sites where lanes leave it."""
        wanted = {site for group in self.groups for site in group.weights}
        found = {}
        for site in range(1, max(wanted) + 1):
            x = self.front.run(x, site - 1, site)
            if site in wanted:
                found[site] = x
        return found

    def _targets(self, x: Tensor) -> Targets:
        sites = []
        for site in range(self.native.num_sites):
            x = self.native.run(x, site, site + 1)
            sites.append(x)
        norms = [torch.linalg.vector_norm(_wide(g)) for g in sites]
        return Targets(sites, norms, _wide(self.native.head(x)).log_softmax(1))

    def _resized(self, fronts: Mapping[int, Tensor], end_site: int) -> dict[int, Tensor]:
        """The fronts that lanes at an end site need, in the size of its map."""
        size = self.sizes[end_site - 1]
        wanted = {s for g in self.groups if g.end_site == end_site for s in g.weights}
        return {
            site: fronts[site]
            if fronts[site].shape[2:] == size
            else F.interpolate(fronts[site], size=size, mode="bilinear", align_corners=False)
            for site in wanted
        }

    def lane(self, number: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Weight (C2, C1), bias (C2,) and the tail's running statistics of a lane, by their names
        in `Tail`."""
        group = next(g for g in self.groups if number in g.numbers)
        place = group.numbers.index(number)
        stitches = [
            (w, b)
            for site, weights in group.weights.items()
            for w, b in zip(weights.detach(), group.biases[site].detach(), strict=True)
        ]
        return *stitches[place], {name: s[place] for name, s in group.statistics.items()}


def _lanes_at(lanes: Sequence[LaneOf], end_site: int, methods: Sequence[str]) -> list[int]:
    return [n for n, x in enumerate(lanes) if x.end_site == end_site and x.method in methods]
