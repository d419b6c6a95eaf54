"""Per-image attack losses, all to be maximised, and the gradients of their sum.

Samples never mix: the loss of a batch is the sum of its images' losses, so the gradient of one
image, of any lane, does not depend on the others (in eval mode).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FulaError
from ..kernels.shared.sums import wide

_NO_LABEL = -(2**62)  # PyTorch's -100 would leave an image where it is, as if it were robust

LogitsFn = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] -> logits (N, classes)."""


class Evaluation(NamedTuple):
    """What one look at a batch of images gives: input gradient (N, C, H, W), per-image loss (N,),
    and logits (N, classes) in float32 (float64 for float64 images)."""

    grad: Tensor
    loss: Tensor
    logits: Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label], (N, classes), (N,) -> (N,). No label is ignored.

    Labels are not looked at: one that is no class is an `IndexError` on the CPU, and on CUDA a
    device-side assert, which ends the process's CUDA context. `check_labels` asks beforehand.
    """
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=_NO_LABEL)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (N, classes), (N,) -> (N,).

    (max of the other logits - own logit) / (largest - third largest + 1e-12); at least three
    classes (Croce & Hein 2020, Eq. 6).
    """
    ranked, order = logits.sort(dim=1)
    other = torch.where(order[:, -1] == labels, ranked[:, -2], ranked[:, -1])
    return (other - _at(logits, labels)) / (ranked[:, -1] - ranked[:, -3] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio, (N, classes), (N,), (N,) -> (N,).

    (target logit - own logit) / (largest - mean of the third and fourth + 1e-12); at least four
    classes (Croce & Hein 2020, Eq. 7).
    """
    ranked = logits.sort(dim=1)[0]
    spread = ranked[:, -1] - 0.5 * (ranked[:, -3] + ranked[:, -4]) + 1e-12
    return (_at(logits, targets) - _at(logits, labels)) / spread


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def predict(logits: Tensor) -> Tensor:
    """Predicted class (N,) int64; -1, which is no class and never right, where the largest logit
    is no finite number (a NaN counts as the largest)."""
    largest, label = logits.max(1)
    return torch.where(largest.isfinite(), label, -1)


def evaluate(logits_fn: LogitsFn, x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Evaluation:
    """Logits, losses `loss_of(logits)` (N,) and the gradient of their sum with respect to `x`.

    The images keep their dtype; logits of a narrower dtype are widened before the loss. A NaN in
    the gradient is replaced by 0: it points nowhere, and the image must stay in its range. Raises
    `FulaError` for logits without a gradient, behind which any model would look robust.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = wide(logits_fn(x))
        loss = loss_of(logits)
        grad = None
        if loss.requires_grad:  # to the image, or to trainable weights alone
            (grad,) = torch.autograd.grad(loss.sum(), x, allow_unused=True)
    if grad is None:
        raise FulaError(
            "the model's logits carry no gradient to the image, so gradients cannot attack it; "
            "remove detach() or no_grad() from its forward pass"
        )
    return Evaluation(grad.nan_to_num(nan=0.0), loss.detach(), logits.detach())


def check_label_form(labels: Tensor, images: int) -> None:
    """Raise `FulaError` unless `labels` are one class index per image, (images,); looks at no
    value."""
    if labels.shape != (images,):
        raise FulaError(
            f"labels have shape {tuple(labels.shape)}, but there are {images} images; "
            "give one class index per image"
        )
    if labels.dtype.is_floating_point:
        raise FulaError(f"labels are {labels.dtype}: they must be class indices (int64)")


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise `FulaError` for a label of (N,) that is no class, 0 … classes - 1. Asks the device."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(wrong.int().argmax())
        raise FulaError(
            f"label {int(labels[first])} of image {first} is out of range: the model has "
            f"{classes} classes, 0 to {classes - 1}"
        )
