"""Auto-PGD (Croce & Hein 2020, Algorithm 1), l-inf and l2, as a function of per-image state.

The published loop takes a gradient at the start and then alternates steps and gradients. Here one
iteration is "look at the current point, do the bookkeeping, step", so that images at different
iterations may share a batch: everything, the iteration `t` included, is per image. Image for image
the numbers are those of the reference implementation (package pyautoattack), operation for
operation; the oscillation check needs only a running count of loss increases, not the history.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import FulaError
from .losses import Evaluation, LogitsFn, cross_entropy, dlr, evaluate, predict, targeted_dlr
from .names import CE, DLR
from .options import check_norm

MOMENTUM = 0.75


@dataclass(frozen=True)
class APGDConfig:
    """norm and eps: the ball; steps: iterations; rho: the share of increases below which an
    interval counts as oscillating; first_step: initial step size, 2 * eps when unset; eot: samples
    behind one gradient of a stochastic model. Raises `FulaError` for values out of range."""

    norm: str = "linf"
    eps: float = 8 / 255
    steps: int = 100
    rho: float = 0.75
    first_step: float | None = None
    eot: int = 1

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise FulaError(f"eps = {self.eps} must be a finite number >= 0")
        for name in ("steps", "eot"):
            if getattr(self, name) < 1:
                raise FulaError(f"{name} = {getattr(self, name)} must be at least 1")

    @property
    def initial_step(self) -> float:
        """The step size that every image starts with."""
        return 2.0 * self.eps if self.first_step is None else self.first_step


def windows(steps: int) -> list[int]:
    """Per iteration 0 … steps-1: the length of the interval that ends there, else 0.

    The first interval is 22% of all steps; each next one is 3% shorter, but at least 6%.
    """
    length, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    result, since = [], 0
    for _ in range(steps):
        since += 1
        result.append(length if since == length else 0)
        if since == length:
            length, since = max(length - shrink, least), 0
    return result


@dataclass
class State:
    """All images in flight, one row each: (N, C, H, W) images and (N,) numbers.

    x clean, adv the point to look at next, old the point before it, best the point of highest loss
    with its gradient; found the adversarial image to report where `fooled`. t counts the looks
    taken: 0 … steps + 1, when the image is done.
    """

    x: Tensor
    labels: Tensor
    adv: Tensor
    old: Tensor
    best: Tensor
    best_grad: Tensor
    found: Tensor
    t: Tensor
    step: Tensor
    best_loss: Tensor
    last_loss: Tensor
    check_loss: Tensor
    rises: Tensor
    reduced: Tensor
    fooled: Tensor

    def tensors(self) -> list[Tensor]:
        """Every field, in order."""
        return [getattr(self, field.name) for field in fields(self)]

    def assign(self, other: State) -> None:
        """Copy another state of the same size into these tensors."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            if mine is not theirs:
                mine.copy_(theirs)

    def put(self, rows: Tensor, other: State) -> None:
        """Copy the rows of another state into these rows (n,) int64."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.index_copy_(0, rows, theirs)

    def take(self, rows: Tensor) -> State:
        """A new state of these rows (n,) int64."""
        return State(*(tensor.index_select(0, rows) for tensor in self.tensors()))


def begin(config: APGDConfig, x: Tensor, labels: Tensor, noise: Tensor) -> State:
    """The state before the first look: x (N, C, H, W) in [0, 1], displaced by eps times `noise`.

    noise (N, C, H, W) is scaled to unit norm per image first: to a point on the ball's surface.
    """
    start = (x + config.eps * unit(noise.to(x), config.norm)).clamp(0.0, 1.0)
    zeros = x.new_zeros(len(x))
    no = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    images = [start.clone() for _ in range(5)]  # no two fields share memory
    return State(
        x.clone(), labels.clone(), *images,
        t=torch.zeros(len(x), dtype=torch.int64, device=x.device),
        step=torch.full_like(zeros, config.initial_step),
        best_loss=zeros.clone(), last_loss=zeros.clone(), check_loss=zeros.clone(),
        rises=zeros.clone(), reduced=~no, fooled=no,
    )  # fmt: skip


def unit(x: Tensor, norm: str) -> Tensor:
    """Each image of x (N, C, H, W) divided by its norm (+ 1e-12)."""
    flat = x.flatten(1)
    size = flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()
    return x / (_column(size, x) + 1e-12)


def interval_table(config: APGDConfig, like: Tensor) -> Tensor:
    """`windows` as a tensor (steps,) of `like`'s dtype, on its device."""
    return torch.tensor(windows(config.steps), dtype=like.dtype, device=like.device)


def advance(
    config: APGDConfig, table: Tensor, state: State, seen: Evaluation, *, keep_first: bool = False
) -> State:
    """One iteration: the state after the points `adv` were looked at (`seen`) and moved.

    table: `interval_table`. keep_first: `found` is each row's first adversarial image, else its
    last. No host synchronisation; nothing is changed in place. State and `seen` hold (N, ...), a
    row for each image.
    """
    state, grad = _observe(config, table, state, seen, keep_first)
    step = _step_linf if config.norm == "linf" else _step_l2
    a = _column(torch.where(state.t == 0, 1.0, MOMENTUM).to(state.step.dtype), state.adv)
    moved = step(state, grad, a, config.eps)
    return replace(state, adv=moved, old=state.adv, t=state.t + 1)


def _observe(
    config: APGDConfig, table: Tensor, state: State, seen: Evaluation, keep_first: bool
) -> tuple[State, Tensor]:
    """Record what was seen; where an interval ends without progress, halve the step size and go
    back to the best point. Returns the state and the gradient to step along."""
    first = state.t == 0
    wrong = (predict(seen.logits) != state.labels) & (state.t <= config.steps)
    report = wrong & ~state.fooled if keep_first else wrong
    better = first | (seen.loss > state.best_loss)
    best_loss = torch.where(better, seen.loss, state.best_loss)
    best = _pick(better, state.adv, state.best)
    best_grad = _pick(better, seen.grad, state.best_grad)
    # the published check compares the first loss of all with 0, not with the loss at the start
    rises = torch.where(first, 0.0, state.rises + (seen.loss > state.last_loss))

    window = torch.where(first, 0.0, table[(state.t - 1).clamp(0, config.steps - 1)])
    check = window > 0
    stalled = (rises <= window * config.rho) | (~state.reduced & (state.check_loss >= best_loss))
    halve = check & stalled
    after = replace(
        state,
        adv=_pick(halve, best, state.adv),
        best=best,
        best_grad=best_grad,
        found=_pick(report, state.adv, state.found),
        step=torch.where(halve, state.step / 2.0, state.step),
        best_loss=best_loss,
        last_loss=torch.where(first, 0.0, seen.loss),
        check_loss=torch.where(first | check, best_loss, state.check_loss),
        rises=torch.where(check, 0.0, rises),
        reduced=torch.where(check, stalled, state.reduced),
        fooled=state.fooled | wrong,
    )
    return after, _pick(halve, best_grad, seen.grad)


def _step_linf(state: State, grad: Tensor, a: Tensor, eps: float) -> Tensor:
    """Sign step, then momentum, each projected (Eq. 1 and 2 of the paper)."""
    adv, low, high = state.adv, state.x - eps, state.x + eps
    step = _column(state.step, adv)
    ahead = torch.min(torch.max(adv + step * grad.sign(), low), high).clamp(0.0, 1.0)
    mixed = adv + (ahead - adv) * a + (adv - state.old) * (1 - a)
    return torch.min(torch.max(mixed, low), high).clamp(0.0, 1.0)


def _step_l2(state: State, grad: Tensor, a: Tensor, eps: float) -> Tensor:
    """Step along the normalised gradient, then momentum, each projected."""
    adv = state.adv
    ahead = _into_ball(adv + _column(state.step, adv) * unit(grad, "l2"), state.x, eps)
    mixed = adv + (ahead - adv) * a + (adv - state.old) * (1 - a)
    return _into_ball(mixed, state.x, eps)


def _into_ball(point: Tensor, x: Tensor, eps: float) -> Tensor:
    offset = point - x
    length = _column(offset.square().flatten(1).sum(1).sqrt(), x)
    return (x + unit(offset, "l2") * length.clamp(max=eps)).clamp(0.0, 1.0)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _pick(where: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(_column(where, a), a, b)


class APGDResult(NamedTuple):
    """Of one run, per image: the point of highest loss and that loss, whether every point looked at
    was classified rightly, and the last (or first) adversarial image where not."""

    best: Tensor
    best_loss: Tensor
    robust: Tensor
    found: Tensor


def apgd(
    logits_fn: LogitsFn,
    x: Tensor,
    labels: Tensor,
    config: APGDConfig,
    *,
    noise: Tensor,
    loss: int = CE,
    targets: Tensor | None = None,
    keep_first: bool = False,
    on_look: Callable[[Tensor], None] | None = None,
) -> APGDResult:
    """One run of APGD over one batch: x (N, C, H, W) in [0, 1], labels (N,), noise like x.

    loss: CE, DLR, or TARGETED towards `targets` (N,). `on_look` is shown every point looked at,
    steps + 1 of them. The model must be in eval mode.
    """

    def loss_of(logits: Tensor) -> Tensor:
        return image_loss(logits, labels, targets, loss)

    state, table = begin(config, x, labels, noise), interval_table(config, x)
    for _ in range(config.steps + 1):
        if on_look is not None:
            on_look(state.adv)
        seen = evaluate_mean(logits_fn, state.adv, loss_of, config.eot)
        state = advance(config, table, state, seen, keep_first=keep_first)
    return APGDResult(state.best, state.best_loss, ~state.fooled, state.found)


def image_loss(logits: Tensor, labels: Tensor, targets: Tensor | None, kind: int) -> Tensor:
    """Per-image loss (N,) of one kind (see `losses`); `targets` only matter to TARGETED."""
    if kind == CE:
        return cross_entropy(logits, labels)
    return dlr(logits, labels) if kind == DLR else targeted_dlr(logits, labels, targets)


def evaluate_mean(
    logits_fn: LogitsFn, x: Tensor, loss_of: Callable[[Tensor], Tensor], samples: int
) -> Evaluation:
    """`evaluate` with the gradient averaged over `samples` looks (expectation over transformations,
    Athalye et al. 2018); loss and logits are the last look's."""
    seen = evaluate(logits_fn, x, loss_of)
    if samples == 1:
        return seen
    total = seen.grad
    for _ in range(samples - 1):
        seen = evaluate(logits_fn, x, loss_of)
        total = total + seen.grad
    return seen._replace(grad=total / float(samples))
