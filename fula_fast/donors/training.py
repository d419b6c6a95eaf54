"""Training and evaluating a donor network.

Recipes: `paper` (the FuLA preprint's appendix A.1: 200 epochs, rate 0.1 times 0.1 at each third)
and `fast` (one-cycle, for development). Both are SGD with Nesterov momentum 0.9 on cross-entropy
without label smoothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..device.precision import PLAIN, arithmetic, autocast
from ..errors import FulaError, nearest
from ..measures.agreement import answered, right
from ..models import Staged
from ..models.labels import check_answers, check_fit
from ..models.staged import eval_mode
from ..pipelines import (
    Augmentation,
    ImageSet,
    Input,
    Shortcut,
    Source,
    evaluation_batches,
    open_stream,
)

Adversary = Callable[[Staged, Tensor, Tensor, Tensor, int], Tensor]
"""(model in eval mode, images (n, C, H, W) in [0, 1], labels (n,), index (n,), epoch) to
adversarial images; `index` are sample numbers, for keyed randomness."""

PLAIN_INPUT = Input()
"""Of a network that takes pixels in [0, 1] as they are."""

MOMENTUM = 0.9
_WARM_UP = 0.2
_PERMUTE = 0x9E12


@dataclass(frozen=True)
class TrainingRecipe:
    """`lr` is the first (`thirds`) or the highest (`one-cycle`) rate."""

    lr: float
    schedule: str
    weight_decay: float
    epochs: int
    batch_size: int

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted over all epochs.

        `thirds`: times 0.1 at one and two thirds of the epochs. `one-cycle`: linear up over the
        first fifth of all steps, linear down to zero after it.
        """
        if self.schedule == "thirds":
            return self.lr * 0.1 ** (3 * (step // steps_per_epoch) // self.epochs)
        done = (step + 0.5) / (steps_per_epoch * self.epochs)
        return self.lr * min(done / _WARM_UP, (1 - done) / (1 - _WARM_UP))


RECIPES = {
    "paper": TrainingRecipe(
        lr=0.1, schedule="thirds", weight_decay=1e-4, epochs=200, batch_size=128
    ),
    "fast": TrainingRecipe(
        lr=0.1, schedule="one-cycle", weight_decay=5e-4, epochs=20, batch_size=128
    ),
}


def resolved_recipe(name: str, **overrides: Any) -> TrainingRecipe:
    """A named recipe with those of `lr`, `epochs`, `batch_size` replaced that are not None.

    Raises `FulaError` for an unknown name.
    """
    if name not in RECIPES:
        raise FulaError(f"unknown recipe '{name}'{nearest(name, RECIPES)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    return TrainingRecipe(**{**vars(RECIPES[name]), **given})


@dataclass(frozen=True)
class DonorTraining:
    """What a donor's weights depend on, beside its network, the images and the attack on them.

    `recipe`: one of `RECIPES`, of which `epochs`, `batch_size` and `lr` replace what is not None.
    `seed`: of order, crops and flips. `pad`, `flip`: of the augmentation, pixels and whether.
    `given`: what the network takes of the images. `shortcut`: on all images, those of the test too.
    `alpha`: share of each batch that is attacked (its first floor(alpha * B) images; batches are in
    random order). `permute_labels`: each training image has the label of another one, a control.
    """

    recipe: str = "fast"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0
    pad: int = 4
    flip: bool = True
    given: Input = PLAIN_INPUT
    shortcut: Shortcut | None = None
    alpha: float = 0.0
    permute_labels: bool = False

    @property
    def resolved(self) -> TrainingRecipe:
        """The recipe with what replaces its values. Raises `FulaError` for an unknown name."""
        own = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        return resolved_recipe(self.recipe, **own)


class EpochReport(NamedTuple):
    """What `progress` is called with after an epoch (1 … epochs); means over its batches."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float


class Score(NamedTuple):
    """Top-1 accuracy in [0, 1] and mean cross-entropy over a set."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class DonorMetrics:
    """`train_*`: means over the last epoch's (augmented, partly attacked) batches while training;
    None without training. `test_*`: the whole test set in eval mode; None without labels.
    `seconds`: of training."""

    test_accuracy: float | None
    test_loss: float | None
    train_accuracy: float | None
    train_loss: float | None
    seconds: float
    epochs: int


DEFAULT_TRAINING = DonorTraining()


def train_donor(
    staged: Staged,
    source: Source,
    training: DonorTraining = DEFAULT_TRAINING,
    *,
    attack: Adversary | None = None,
    stream: str = "resident",
    device: str | torch.device = "cpu",
    precision: str = PLAIN,
    progress: Callable[[EpochReport], None] | None = None,
) -> DonorMetrics:
    """Train `staged` in place on `source.train`; afterwards it is on the CPU in eval mode.

    The same arguments, device and versions give the same weights, bit for bit. `attack` makes the
    attacked images. `precision` is fp32, tf32 or bf16 (autocast). `epochs = 0` only evaluates.
    Raises `FulaError` for a model that does not fit the data, an unknown recipe, and a loss that is
    not finite (with its epoch and step).
    """
    plan, given = training.resolved, training.given
    check_fit(staged, source, given.shape(source.image_shape))
    staged.classes = source.classes
    _check_attack(training.alpha, attack, given)
    place = torch.device(device)
    data = permuted(source.train, training.seed) if training.permute_labels else source.train
    common = {**vars(given), "shortcut": training.shortcut, "device": place}
    staged.to(place, memory_format=torch.channels_last)
    last, seconds = None, 0.0
    if plan.epochs:
        batches = open_stream(
            data,
            batch_size=plan.batch_size,
            seed=training.seed,
            augmentation=Augmentation(pad=training.pad, flip=training.flip),
            backend=stream,
            **common,
        )
        attacked = int(training.alpha * plan.batch_size)
        run = _Run(staged, plan, batches, precision, attacked, attack)
        started = time.perf_counter()
        with arithmetic(precision):
            for epoch in range(plan.epochs):
                last = run.epoch(epoch)
                if progress is not None:
                    progress(last)
        seconds = time.perf_counter() - started
    test = evaluate(staged, source.test, precision=precision, **common)
    staged.to("cpu", memory_format=torch.contiguous_format).eval()
    tested = (test.accuracy, test.loss) if source.labelled else (None, None)
    trained = (None, None) if last is None else (last.accuracy, last.loss)
    return DonorMetrics(*tested, *trained, seconds, plan.epochs)


class _Run:
    """The state of one training: model, optimiser, stream."""

    def __init__(
        self,
        staged: Staged,
        recipe: TrainingRecipe,
        stream: Any,
        precision: str,
        attacked: int,
        attack: Adversary | None,
    ) -> None:
        self.staged, self.recipe, self.stream = staged, recipe, stream
        self.precision, self.attacked, self.attack = precision, attacked, attack
        self.optimiser = torch.optim.SGD(
            staged.parameters(),
            lr=recipe.lr,
            momentum=MOMENTUM,
            nesterov=True,
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
        means = _finite(torch.stack(losses), epoch).mean(), torch.stack(right).double().mean()
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
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return loss.detach(), (logits.detach().argmax(1) == batch.labels).sum()

    def _mixed(self, batch: Any, epoch: int) -> Tensor:
        """The batch's images, the first `attacked` of them adversarial."""
        count = self.attacked
        if not count:
            return batch.images
        self.staged.eval()
        clean, labels, index = (part[:count] for part in batch)
        with autocast(clean.device, self.precision):
            adversarial = self.attack(self.staged, clean, labels, index, epoch)
        mixed = torch.cat([adversarial.to(clean), batch.images[count:]])
        return mixed.contiguous(memory_format=torch.channels_last)


def _finite(losses: Tensor, epoch: int) -> Tensor:
    """The losses of an epoch; checked once an epoch, because looking stops a GPU."""
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        step = int(bad[0])
        raise FulaError(
            f"donor training diverged: loss is {float(losses[step])} at epoch {epoch + 1}, step "
            f"{step + 1}; lower lr"
        )
    return losses


def evaluate(
    staged: Staged,
    images: ImageSet,
    *,
    batch_size: int = 500,
    device: str | torch.device = "cpu",
    precision: str = PLAIN,
    **options: Any,
) -> Score:
    """Accuracy and loss of a model (on `device` already) over a set, in eval mode.

    `options` go to `evaluation_batches` (normalisation, frame, shortcut). Raises `FulaError` where
    an image gets no answer (see `measures.agreement.answered`).
    """
    check_answers(staged.num_classes, images.num_classes, f"model '{staged.name}'", "the set")
    correct = loss = silent = torch.zeros((), dtype=torch.float64, device=device)
    with eval_mode(staged), arithmetic(precision):
        for batch in evaluation_batches(images, batch_size, device, **options):
            with autocast(batch.images.device, precision):
                logits = staged(batch.images).float()
            correct = correct + right(logits, batch.labels).sum()
            silent = silent + (~answered(logits)).sum()
            loss = loss + cross_entropy(logits, batch.labels, reduction="sum")
    _check_answers(staged, int(silent), len(images))
    return Score(float(correct) / len(images), float(loss) / len(images))


def _check_answers(staged: Staged, silent: int, images: int) -> None:
    if silent:
        wrong = [n for n, value in staged.state().items() if not torch.isfinite(value).all()]
        where = f"weight '{wrong[0]}' is not finite" if wrong else "its weights are finite"
        raise FulaError(
            f"model '{staged.name}' gives no finite logits on {silent} of {images} test images "
            f"({where}); give sound weights, or the normalisation that they were trained with"
        )


def permuted(images: ImageSet, seed: int) -> ImageSet:
    """The same images, each with the label of another: their labels in a keyed random order."""
    key = np.array([seed, _PERMUTE], dtype=np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(len(images)), kind="stable")
    labels = images.labels[order]
    if isinstance(images, ImageSet):
        return replace(images, labels=labels)
    return replace(images, index=replace(images.index, labels=labels))


def _check_attack(alpha: float, attack: Adversary | None, given: Input) -> None:
    if not 0 <= alpha <= 1:
        raise FulaError(f"alpha = {alpha} must lie in [0, 1], the share of images to attack")
    if alpha and attack is None:
        raise FulaError(f"alpha = {alpha} needs an attack; pass one, or set alpha = 0")
    if alpha and given != PLAIN_INPUT:
        raise FulaError(
            "adversarial training attacks pixels in [0, 1], but the data are normalised or "
            "resized; set mean = 0 and std = 1, and no size, for plain pixels"
        )
