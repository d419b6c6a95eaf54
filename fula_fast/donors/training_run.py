"""The loop of a donor's training: recipes, rates, epochs, steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..device.precision import autocast
from ..errors import FulaError, not_none
from ..models import Staged
from ..pipelines import ImageSet

Adversary = Callable[[Staged, Tensor, Tensor, Tensor, int], Tensor]
"""(model in eval mode, images (n, C, H, W) in [0, 1], labels (n,), index (n,), epoch) to
adversarial images; `index` are sample numbers, for keyed randomness."""

MOMENTUM = 0.9
_WARM_UP = 0.2


@dataclass(frozen=True)
class TrainingRecipe:
    """`lr` is the first (`thirds`) or the highest (`one-cycle`) rate. `smallest_crop`: images are
    random crops, resized, of this share of their area or more (None: as a stream moves them)."""

    lr: float
    schedule: str
    weight_decay: float
    epochs: int
    batch_size: int
    nesterov: bool = True
    smallest_crop: float | None = None

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted over all epochs.

        `thirds`: times 0.1 at one and two thirds of the epochs. `one-cycle`: linear up over the
        first fifth of all steps, linear down to zero after it.
        """
        if self.schedule == "thirds":
            return self.lr * 0.1 ** (3 * (step // steps_per_epoch) // self.epochs)
        done = (step + 0.5) / (steps_per_epoch * self.epochs)
        return self.lr * min(done / _WARM_UP, (1 - done) / (1 - _WARM_UP))


class EpochReport(NamedTuple):
    """What `progress` is called with after an epoch (1 … epochs); means over its batches."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float


class TrainingRun:
    """The state of one training: model, optimiser, stream."""

    def __init__(
        self,
        staged: Staged,
        recipe: TrainingRecipe,
        stream: Any,
        precision: str,
        attacked: int = 0,
        attack: Adversary | None = None,
    ) -> None:
        self.staged, self.recipe, self.stream = staged, recipe, stream
        self.precision, self.attacked, self.attack = precision, attacked, attack
        self.optimiser = torch.optim.SGD(
            staged.parameters(),
            lr=recipe.lr,
            momentum=MOMENTUM,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )

    def epoch(self, epoch: int) -> EpochReport:
        started = time.perf_counter()
        losses, right = [], []
        for step, batch in enumerate(self.stream.epoch(epoch)):
            rate = self.recipe.rate(epoch * self.stream.steps + step, self.stream.steps)
            loss, correct = self.step(batch, epoch, rate)
            losses.append(loss)
            right.append(correct)
        means = finite(torch.stack(losses), epoch).mean(), torch.stack(right).double().mean()
        loss, accuracy = (float(value) for value in means)
        seconds = time.perf_counter() - started
        accuracy /= self.stream.batch_size
        return EpochReport(epoch + 1, self.recipe.epochs, loss, accuracy, seconds)

    def step(self, batch: Any, epoch: int, rate: float) -> tuple[Tensor, Tensor]:
        """One update; the batch's loss and number of right answers, left on the device."""
        images = self._mixed(batch, epoch)
        self.staged.train()
        with autocast(images.device, self.precision):
            logits = self.staged(images)
            loss = cross_entropy(logits, batch.labels)
        self.update(loss, rate)
        return loss.detach(), (logits.detach().argmax(1) == batch.labels).sum()

    def update(self, loss: Tensor, rate: float) -> None:
        """One step of the optimiser along the gradient of a loss ()."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()

    def finish(self, images: ImageSet, **common: Any) -> None:
        """After the last epoch: nothing, for a classifier. `images`: those of the training;
        `common`: as of `evaluation_batches`."""

    def _mixed(self, batch: Any, epoch: int) -> Tensor:
        """The batch's images, the first `attacked` of them adversarial."""
        count = self.attacked
        if not count:
            return batch.images
        self.staged.eval()
        clean, labels, index = (part[:count] for part in batch)
        with autocast(clean.device, self.precision):
            adversarial = not_none(self.attack)(self.staged, clean, labels, index, epoch)
        mixed = torch.cat([adversarial.to(clean), batch.images[count:]])
        return mixed.contiguous(memory_format=torch.channels_last)


def finite(losses: Tensor, epoch: int) -> Tensor:
    """The losses (steps,) of an epoch; checked once an epoch, because looking stops a GPU. Raises
    `FulaError` where one is not finite."""
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        step = int(bad[0])
        raise FulaError(
            f"donor training diverged: loss is {float(losses[step])} at epoch {epoch + 1}, step "
            f"{step + 1}; lower lr"
        )
    return losses
