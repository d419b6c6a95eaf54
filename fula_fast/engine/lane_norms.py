"""Batch norm for lanes: shared frozen weights, statistics of each lane's own.

In a wave, lanes are concatenated along the batch axis, (n*B, C, ...). Every batch norm of a donor's
copy is replaced by a `LaneNorm`, whose call is that of the layer it replaces.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import kernels
from ..errors import FulaError, not_none
from ..models import Staged
from ..models.batchnorm import Rule, has_activation
from ..models.subsampled import take_pixels_first

M = TypeVar("M", bound=nn.Module)


class LaneNorm(nn.Module):
    """relu?(bn_l(x) + residual), (n*B, C, ...), for n lanes l concatenated along the batch.

    Before a pass, `assign` says which lanes come, in order, and under which rule: `moving` (batch
    statistics, running ones follow), `batch` (nothing moves), `running` (eval mode).
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, lanes: int) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise FulaError(
                "a batch norm without running statistics cannot be evaluated lane by lane; "
                "build the donor with track_running_stats = True"
            )
        self.eps, self.momentum = norm.eps, norm.momentum
        mean = norm.running_mean.detach()
        weight = norm.weight if norm.affine else torch.ones_like(mean)
        bias = norm.bias if norm.affine else torch.zeros_like(mean)
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.register_buffer("running_mean", mean.repeat(lanes, 1))
        self.register_buffer("running_var", norm.running_var.detach().repeat(lanes, 1))
        tracked = not_none(norm.num_batches_tracked).repeat(lanes)
        self.register_buffer("num_batches_tracked", tracked)
        self.ids: Tensor | slice = slice(0, lanes)
        self.count, self.rule = lanes, "running"
        # A target (B, ...), one for all lanes, makes the next pass leave its distances (L, B).
        self.target: Tensor | None = None
        self.dist2: Tensor | None = None
        # Samples that the next pass may leave behind its output, for lanes that join there. (Plain
        # PyTorch keeps its output for the ReLU's gradient: nothing may be written behind it.)
        self.room = 0

    def assign(self, ids: Tensor | slice, count: int, rule: Rule) -> None:
        """The next passes carry these `count` lanes: `ids` (count,) of all, or a slice of them."""
        self.ids, self.count, self.rule = ids, count, rule

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        maps, tail = _as_maps(x)
        y, mean, var, self.dist2 = kernels.lane_norm(
            maps,
            self.weight,
            self.bias,
            self.running_mean[self.ids],
            self.running_var[self.ids],
            lanes=self.count,
            training=self.rule != "running",
            eps=self.eps,
            residual=None if residual is None else _as_maps(residual)[0],
            relu=relu,
            target=self.target,
            room=self.room_for(maps),
        )
        self.follow(mean, var, maps.numel() // (self.count * maps.shape[1]))
        return y if tail is None else y.reshape(tail)

    def room_for(self, x: Tensor) -> int:
        """Samples that are left behind the output of x (n*B, C, H, W)."""
        return self.room if kernels.backend.choose("lane_norm", x) != "reference" else 0

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor, samples: int) -> None:
        """Move the running statistics of the lanes present towards those (n, C) of so many values,
        if the rule says so (PyTorch's rule: unbiased variance)."""
        if self.rule != "moving":
            return
        factor: Tensor | float | None = self.momentum
        if factor is None:  # cumulative average
            self.num_batches_tracked[self.ids] += 1
            factor = (1.0 / self.num_batches_tracked[self.ids])[:, None].to(mean.dtype)
        unbiased = var * (samples / max(samples - 1, 1))
        buffers = self.running_mean, self.running_var
        if isinstance(self.ids, slice) and isinstance(factor, float):  # in place, in one kernel
            torch._foreach_lerp_([b[self.ids] for b in buffers], [mean, unbiased], factor)
            return
        for buffer, value in zip(buffers, (mean, unbiased), strict=True):
            old = buffer[self.ids]
            buffer[self.ids] = old + factor * (value - old)


class LaneNormAct(LaneNorm):
    """act(drop(bn_l(x))), (n*B, C, ...): timm's batch norm with an activation."""

    drop: nn.Module
    act: nn.Module

    def __init__(self, norm: Any, lanes: int) -> None:
        super().__init__(norm, lanes)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def _as_maps(x: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
    """(N, C), (N, C, T) and (N, C, D, H, W) as (N, C, positions, 1), with the shape to
    give back."""
    if x.dim() == 4:
        return x, None
    return x.reshape(*x.shape[:2], -1, 1), tuple(x.shape)


def lane_copy(model: Staged, lanes: int, dtype: torch.dtype) -> Staged:
    """A frozen copy of a donor with a `LaneNorm` for every batch norm.

    Weights are cast to `dtype`; norms keep their statistics in float32, or in float64 with it.
    """
    twin = cast(model, dtype).eval()
    _replace(twin, lanes)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    for norm in lane_norms(twin):
        _cast_own(norm, statistics)
    if any(p.device.type != "cpu" for p in twin.parameters()):
        take_pixels_first(twin)
    return twin


def cast(model: M, dtype: torch.dtype) -> M:
    """A frozen copy whose floats, but for those of batch norms, are in `dtype`.

    Weights that need no cast are shared with the model: nobody writes to them.
    """
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for module in twin.modules():
        if not isinstance(module, _BatchNorm | LaneNorm):
            _cast_own(module, dtype)
    return twin


def _cast_own(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast a module's own parameters and buffers, not those of its parts.

    By `setattr`: recurrent layers keep a list of their weights beside, and follow it so.
    """
    for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
        setattr(module, name, nn.Parameter(_laid_out(weight.detach(), dtype), False))
    for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
        setattr(module, name, _laid_out(buffer, dtype))


def _laid_out(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype` where it is a float; a convolution's weight laid out as the activations are: cuDNN
    copies others at every call."""
    weight = weight.to(dtype) if weight.is_floating_point() else weight
    if weight.device.type != "cpu" and weight.dim() == 4:
        return weight.contiguous(memory_format=torch.channels_last)
    return weight


def _replace(module: nn.Module, lanes: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            kind = LaneNormAct if has_activation(child) else LaneNorm
            setattr(module, name, kind(child, lanes))
        else:
            _replace(child, lanes)


def lane_norms(module: nn.Module) -> list[LaneNorm]:
    """All lane norms of a module."""
    return [m for m in module.modules() if isinstance(m, LaneNorm)]


def last_norm(stage: nn.Module, x: Tensor) -> tuple[Tensor, LaneNorm | None]:
    """Run a stage on x (B, ...); its output, and the lane norm whose own output that is, unchanged.

    Found by running: what a stage does after its last norm is not written in its modules.
    """
    made: list[tuple[LaneNorm, Tensor, int]] = []
    hooks = [
        norm.register_forward_hook(lambda m, _, y: made.append((m, y, y._version)))
        for norm in lane_norms(stage)
        if type(norm) is LaneNorm  # one with an activation measures before it
    ]
    out = stage(x)
    for hook in hooks:
        hook.remove()
    last = [m for m, y, version in made if y is out and y._version == version and y.dim() == 4]
    return out, last[-1] if last else None


def assign(norms: Iterable[LaneNorm], ids: Tensor | slice, count: int, rule: Rule) -> None:
    """`LaneNorm.assign` for several layers: `ids` (count,)."""
    for norm in norms:
        norm.assign(ids, count, rule)


def index_of(lanes: Sequence[int], device: torch.device) -> Tensor | slice:
    """Lane numbers as a slice where they are consecutive, else as an index tensor."""
    if list(lanes) == list(range(lanes[0], lanes[0] + len(lanes))):
        return slice(lanes[0], lanes[0] + len(lanes))
    return torch.tensor(lanes, device=device)


def settling_steps(norms: Iterable[LaneNorm], tolerance: float = 1e-9) -> int | None:
    """Steps after which earlier batches weigh less than `tolerance` in every running statistic.

    ceil(ln tolerance / ln(1 - momentum)); None where a momentum is None (a cumulative average
    never forgets) or 0 (statistics never move by batches, so nothing may be skipped).
    """
    import math

    every = {norm.momentum for norm in norms}
    if not every:
        return 0
    momenta = [momentum for momentum in every if momentum is not None]
    if len(momenta) < len(every) or min(momenta) <= 0:
        return None
    slowest = min(momenta)
    return 1 if slowest >= 1 else math.ceil(math.log(tolerance) / math.log1p(-slowest))
