"""Projected gradient descent in pixel space (Madry et al. 2018), l-inf and l2.

One implementation serves training and evaluation, single models and lanes: `pgd` is plain tensor
code without host synchronisation, so it may stand inside a larger captured step; `PGD` captures
the loop by itself. Images of several lanes are concatenated along the batch, (L*B, C, H, W).

    adversarial = pgd(model, images, labels, Attack(steps=10))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..device.compiling import compiled
from ..device.mode import CAPTURED, COMPILED, EAGER
from ..device.replay import Replay, recorder_on
from ..errors import FulaError
from ..kernels import pgd_step
from .losses import LogitsFn, check_label_form, check_labels, cross_entropy, evaluate
from .options import check_mode
from .settings import Attack

GradientFn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (N, C, H, W) -> (gradient of the summed loss to ascend, per-image loss (N,))."""


@contextmanager
def eval_mode(model: object) -> Iterator[None]:
    """Every module of `model` in eval mode, its own modes put back afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training


def start_point(x: Tensor, noise: Tensor | None, eps: float) -> Tensor:
    """`x` (N, C, H, W) displaced by eps * `noise` (in the unit ball; see `start_noise`), kept in
    [0, 1]."""
    if noise is None:
        return x
    return (x + eps * noise.to(x)).clamp(0, 1)


def pgd_from(
    gradient_fn: GradientFn,
    x: Tensor,
    attack: Attack,
    *,
    noise: Tensor | None = None,
    keep: str = "last",
) -> Tensor:
    """Adversarial versions of `x` (N, C, H, W) in [0, 1], from any gradient.

    `attack.steps` ascent steps, all taken. keep: "last" returns the last iterate; "best" that of
    the highest loss, the start and the last included (one more gradient). noise: see
    `start_point`; needed if and only if `attack.random_start`. Raises `FulaError` otherwise.
    """
    _check(attack, noise, keep)
    x = x.detach()
    current = start_point(x, noise, attack.eps)
    if keep == "last":
        for _ in range(attack.steps):
            current = _stepped(current, gradient_fn(current)[0], x, attack)
        return current
    return _best_iterate(gradient_fn, current, x, attack)


def _stepped(current: Tensor, grad: Tensor, x: Tensor, attack: Attack) -> Tensor:
    return pgd_step(current, grad, x, attack.step, attack.eps, attack.norm)


def _best_iterate(gradient_fn: GradientFn, current: Tensor, x: Tensor, attack: Attack) -> Tensor:
    best, best_loss = current, None
    for step in range(attack.steps + 1):
        grad, loss = gradient_fn(current)
        if best_loss is not None:
            better = loss > best_loss
            best = torch.where(better.reshape(-1, *[1] * (x.dim() - 1)), current, best)
            best_loss = torch.where(better, loss, best_loss)
        else:
            best_loss = loss
        if step < attack.steps:
            current = _stepped(current, grad, x, attack)
    return best


def _check(attack: Attack, noise: Tensor | None, keep: str) -> None:
    if keep not in ("last", "best"):
        raise FulaError(f"keep = '{keep}': must be 'last' or 'best'")
    if attack.random_start != (noise is not None):
        rule = "needs the start noise" if attack.random_start else "takes no start noise"
        raise FulaError(
            f"random_start = {attack.random_start} {rule}; "
            "set random_start = true and pass noise = start_noise(...), or neither"
        )


def pgd(
    logits_fn: LogitsFn,
    x: Tensor,
    labels: Tensor,
    attack: Attack,
    *,
    noise: Tensor | None = None,
    targeted: bool = False,
    keep: str = "last",
) -> Tensor:
    """PGD on the cross-entropy to `labels` (N,): away from them, or towards them if `targeted`.

    logits_fn: a module (run in eval mode, its modes put back) or any function of the images. The
    images' losses are summed, so independent images never mix. Images keep their dtype and must be
    float32 or float64: a narrower one cannot hold the eps-ball. Raises `FulaError` for that, for
    logits without a gradient, and for labels that are no class of the model.

    On CUDA asking for the labels' values would stall the device, so that there only `PGD` checks
    them: here a label that is no class is a device-side assert, which ends the process's CUDA
    context (nothing can be computed on the device any more).
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise FulaError(f"images are {x.dtype}: an attack needs float32 or float64; use x.float()")
    check_label_form(labels, len(x))
    sign = -1.0 if targeted else 1.0

    def loss_of(logits: Tensor) -> Tensor:
        if labels.device.type == "cpu":
            check_labels(labels, logits.shape[1])
        return sign * cross_entropy(logits, labels)

    def gradient(current: Tensor) -> tuple[Tensor, Tensor]:
        seen = evaluate(logits_fn, current, loss_of)
        return seen.grad, seen.loss

    with eval_mode(logits_fn):
        return pgd_from(gradient, x, attack, noise=noise, keep=keep)


class PGD:
    """`pgd` with its loop captured in one CUDA graph per input shape.

    mode: "auto" captures on CUDA and runs eagerly elsewhere; "eager"; "compiled" passes the model
    through torch.compile; "captured" needs CUDA. `compile` adds torch.compile to a captured loop.
    After a call `mode` says what ran ("eager", "compiled", "captured"); the captured loop equals
    the eager one. The model's weights are read in place at every replay.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        attack: Attack,
        *,
        targeted: bool = False,
        keep: str = "last",
        mode: str = "auto",
        compile: bool = False,
    ) -> None:
        check_mode(mode)
        self._model, self._asked = logits_fn, mode
        self._compiled = compile or mode == COMPILED
        forward = compiled(logits_fn) if self._compiled else logits_fn

        def loop(x: Tensor, labels: Tensor, noise: Tensor | None = None) -> Tensor:
            return pgd(forward, x, labels, attack, noise=noise, targeted=targeted, keep=keep)

        self._loop, self._classes = loop, 0
        self._replays: dict[torch.device, Replay] = {}
        self._last = Replay(loop, None)

    def _replay_on(self, device: torch.device) -> Replay:
        if device not in self._replays:
            captures = self._asked in ("auto", CAPTURED)
            self._replays[device] = Replay(self._loop, recorder_on(device) if captures else None)
        self._last = self._replays[device]
        return self._last

    @property
    def mode(self) -> str:
        """What the last call ran: "eager", "compiled" or "captured"."""
        if self._last.mode == CAPTURED:
            return CAPTURED
        return COMPILED if self._compiled else EAGER

    @property
    def replays(self) -> int:
        """How often a captured loop was replayed."""
        return self._last.replays

    def __call__(self, x: Tensor, labels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Adversarial versions of `x` (N, C, H, W) for `labels` (N,); see `pgd`.

        Before the loop the labels are looked at: one host synchronisation a call, and one forward
        pass at the first.
        """
        if self._asked == CAPTURED and not x.is_cuda:
            raise FulaError("mode = 'captured' needs images on a CUDA device; use mode = 'auto'")
        with eval_mode(self._model):
            self._check_labels(x, labels)
            return self._replay_on(x.device)(x, labels, *([] if noise is None else [noise.to(x)]))

    @torch.no_grad()
    def _check_labels(self, x: Tensor, labels: Tensor) -> None:
        check_label_form(labels, len(x))
        self._classes = self._classes or self._model(x).shape[1]
        check_labels(labels, self._classes)
