"""All stitches of a wave: groups of lanes that join a site from like fronts, over one flat buffer.

A group's maps are one batched product of shape (lanes, out, in); a front activation that several
lanes share is never copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from .. import kernels
from ..stitching.stitch import Stitch, from_rows, resize, to_rows
from .lanes import Lane, take_rows

NORM_EPS, NORM_MOMENTUM = 1e-5, 0.1


@dataclass
class Group:
    """Lanes (wave numbers) that join an end site together, in one turn, from fronts of one shape.

    `front_sites`: of each lane. `params`: trained tensors by their name in `Stitch`, each
    (n, *shape), views of the flat buffer (plain copies where nothing is trained). `running`:
    running statistics of the stitch's own batch norms, (n, C).
    """

    front_sites: tuple[int, ...]
    end_site: int
    lanes: tuple[int, ...]
    turn: int
    trained: bool
    template: Stitch
    params: dict[str, Tensor]
    running: dict[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.lanes)

    @cached_property
    def sites(self) -> tuple[int, ...]:
        """The front's sites in use, ascending."""
        return tuple(sorted(set(self.front_sites)))

    def sources(self, x: Tensor) -> list[int]:
        """Each lane's place in its inputs x (S, B, ...)."""
        if x.shape[0] == len(self.sites):
            return [self.sites.index(site) for site in self.front_sites]
        return list(range(self.count))

    @property
    def measures(self) -> bool:
        """Whether the product's own output is the stitch's, so that it can measure distances."""
        shape, geometry = self.template, self.template.geometry
        plain = shape.norm_out is None and "position_weight" not in self.params
        return plain and (not geometry.resizes or self.entry_size is not None)

    @property
    def entry_size(self) -> tuple[int, ...] | None:
        """What inputs are resized to first: where the target is smaller, or a batch norm comes
        before the map."""
        geometry = self.template.geometry
        first = geometry.resizes and (geometry.shrinks or self.template.norm_in is not None)
        return geometry.target[1:] if first else None

    def forward(self, x: Tensor, *, training: bool) -> Tensor:
        """Front activations (S, B, ...) of `entry_size`, for `sources`, to (n*B, *target): the
        batched form of `Stitch.forward`."""
        y = self._product(x, *self._maps(x, training))
        if self.template.norm_out is not None:
            y = self._normed_out(y, training)
        if self.template.geometry.resizes and self.entry_size is None:
            y = resize(y, self.template.geometry.target[1:])
        return y

    def measured(
        self, x: Tensor, target: Tensor, *, training: bool, write: bool
    ) -> tuple[Tensor | None, Tensor]:
        """`forward` (None unless `write`) and squared distances (n, B) to a target (B, ...) that is
        one for all lanes, in one pass. Only where `measures`."""
        maps = self._maps(x, training)
        aims = [0] * self.count
        return kernels.stitch_hint(x, *maps, self.sources(x), target[None], aims, write)

    def _maps(self, x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Weight (n, out, in) and bias (n, out), with the batch norm before the map folded in."""
        weight = self.params["weight"]
        bias = self.params.get("bias")
        bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
        if self.template.norm_in is None:
            return weight, bias
        mean, var = self._statistics("norm_in", x, training)
        scale = self.params["norm_in.weight"] * (var + NORM_EPS).rsqrt()
        shift = self.params["norm_in.bias"] - scale * mean
        return weight * scale[:, None, :], bias + torch.einsum("noi,ni->no", weight, shift)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        index = self.sources(x)
        if "position_weight" not in self.params:
            return kernels.stitch_hint(x, weight, bias, index)[0]
        rows = torch.stack([to_rows(part) for part in x])  # (S, B, P1, C1)
        y = kernels.stitch_hint(rows, weight, bias, index)[0].unflatten(0, (self.count, -1))
        mapped = torch.einsum("npq,nbqc->nbpc", self.params["position_weight"].to(y.dtype), y)
        mapped = mapped + self.params["position_bias"].to(y.dtype)[:, None, :, None]
        return from_rows(mapped.flatten(0, 1), self.template.geometry.target)

    def _normed_out(self, y: Tensor, training: bool) -> Tensor:
        lanes = y.unflatten(0, (self.count, -1))
        mean, var = self._statistics("norm_out", lanes, training)
        scale = self.params["norm_out.weight"] * (var + NORM_EPS).rsqrt()
        shift = self.params["norm_out.bias"] - scale * mean
        shape = _feature_view(lanes)
        return (lanes * scale.view(shape).to(y.dtype) + shift.view(shape).to(y.dtype)).flatten(0, 1)

    def _statistics(self, norm: str, x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of features, (n, C); in training the running ones follow."""
        stored = [self.running[f"{norm}.running_{s}"] for s in ("mean", "var")]
        if not training:
            return stored[0], stored[1]
        axes = [d for d in range(x.dim()) if d not in (0, _feature_axis(x))]
        wide = x.to(stored[0].dtype)
        var, mean = torch.var_mean(wide, axes, correction=0)
        samples = wide[0].numel() // mean.shape[1]
        chosen = tuple(self.sources(x))
        mean, var = take_rows(mean, chosen), take_rows(var, chosen)
        with torch.no_grad():
            for buffer, value in ((stored[0], mean), (stored[1], var * samples / (samples - 1))):
                buffer.lerp_(value, NORM_MOMENTUM)
        return mean, var


def _feature_axis(x: Tensor) -> int:
    """Of (S, B, C, H, W), (S, B, N, C) or (S, B, C)."""
    return 3 if x.dim() == 4 else 2


def _feature_view(x: Tensor) -> list[int]:
    return [size if d in (0, _feature_axis(x)) else 1 for d, size in enumerate(x.shape)]


class Bank:
    """The groups of a wave, turn by turn, in the order of their end site; `flat` holds all trained
    numbers.

    `lane_of` (P,): lane of each number of `flat`. Parameters are float32, or float64 with it.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        stitches: Mapping[str, Stitch],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        members: dict[tuple, list[int]] = {}
        for number, lane in enumerate(lanes):
            members.setdefault((lane.turn, lane.end_site, *lane.group), []).append(number)
        self.groups = [
            _new_group([lanes[n] for n in numbers], numbers, stitches, device, dtype)
            for _, numbers in sorted(members.items())
        ]
        self._flatten(device, dtype)

    def _flatten(self, device: torch.device, dtype: torch.dtype) -> None:
        tensors = [(g, n, t) for g in self.groups if g.trained for n, t in g.params.items()]
        total = sum(t.numel() for _, _, t in tensors)
        self.flat = torch.empty(total, dtype=dtype, device=device)
        self.lane_of = torch.empty(total, dtype=torch.int32, device=device)
        self.slots: list[tuple[Tensor, int]] = []
        self._places: list[Tensor] = []
        self._turns: dict[int, list[Tensor]] = {}
        self._parts: dict[int, slice] = {}
        start = 0
        for group, name, tensor in tensors:
            part = slice(start, start + tensor.numel())
            self.flat[part] = tensor.flatten()
            numbers = torch.tensor(group.lanes, dtype=torch.int32, device=device)
            self.lane_of[part] = numbers.repeat_interleave(prod(tensor.shape[1:]))
            leaf = self.flat[part].view(tensor.shape).detach().requires_grad_()
            group.params[name] = leaf
            self.slots.append((leaf, start))
            self._places.append(numbers.long())
            self._turns.setdefault(group.turn, []).append(leaf)
            begun = self._parts.get(group.turn, part).start
            self._parts[group.turn] = slice(begun, part.stop)  # a turn's groups are neighbours
            start = part.stop

    def parts(self) -> Iterator[tuple[Tensor, slice]]:
        """Of each trained tensor: its lanes (n,), and where in `flat` their equal shares stand."""
        for places, (leaf, start) in zip(self._places, self.slots, strict=True):
            yield places, slice(start, start + leaf.numel())

    def backward(self, losses: Sequence[Tensor], grads: Tensor, turn: int = 0) -> None:
        """Write the gradients of `losses` (), of one graph, which is freed, by a turn's parameters
        into their share of `grads` (K, P): zero where there is none."""
        if turn not in self._turns:
            return
        leaves, own = self._turns[turn], grads[:, self._parts[turn]]
        if not losses[0].requires_grad:
            own.zero_()
            return
        for k, (loss, grad) in enumerate(zip(losses, own, strict=True), 1):
            _write(loss, leaves, grad, again=k < len(losses))

    def lane_state(self, number: int) -> dict[str, Tensor]:
        """The stitch of one lane under `Stitch`'s names (copies)."""
        group = next(g for g in self.groups if number in g.lanes)
        at = group.lanes.index(number)
        parts = {**group.params, **group.running}
        return {name: tensor[at].detach().clone() for name, tensor in parts.items()}

    def running(self) -> dict[str, Tensor]:
        """Running statistics of the stitches' own batch norms, for checkpoints."""
        return {
            f"{number}.{name}": tensor
            for number, group in enumerate(self.groups)
            for name, tensor in group.running.items()
        }


def _write(loss: Tensor, leaves: Sequence[Tensor], grad: Tensor, *, again: bool) -> None:
    """The gradient of `loss` () by `leaves` into `grad` (P,). `again`: its graph has others yet."""
    found = torch.autograd.grad(loss, leaves, retain_graph=again, materialize_grads=True)
    torch.cat([g.flatten() for g in found], out=grad)


def _new_group(
    lanes: Sequence[Lane],
    numbers: Sequence[int],
    stitches: Mapping[str, Stitch],
    device: torch.device,
    dtype: torch.dtype,
) -> Group:
    first = stitches[lanes[0].cell.id]
    states = [stitches[lane.cell.id].state_dict() for lane in lanes]
    stacked = {
        name: torch.stack([s[name] for s in states]).to(device, dtype)
        for name in states[0]
        if not name.endswith("num_batches_tracked")
    }
    running = {n: t for n, t in stacked.items() if "running_" in n}
    params = {n: t for n, t in stacked.items() if n not in running}
    sites = tuple(lane.front_site for lane in lanes)
    return Group(
        sites, lanes[0].end_site, tuple(numbers), lanes[0].turn, lanes[0].trained, first, params,
        running,
    )  # fmt: skip
