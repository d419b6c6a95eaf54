"""Training and evaluating a donor network.

Recipes: `paper` (the FuLA preprint's appendix A.1: 200 epochs, rate 0.1 times 0.1 at each third)
and `fast` (one-cycle, for development): SGD with Nesterov momentum 0.9 on cross-entropy without
label smoothing. `simclr` learns without labels, by the same optimiser and rates as `paper`, with
the augmentations and the loss of its module. `imagenet` is torchvision's reference training of a
ResNet-50 (references/classification, first weights): SGD with momentum 0.9, without Nesterov, rate
0.1 times 0.1 after 30 and 60 of 90 epochs, weight decay 1e-4, batch 256, random resized crops of
0.08 of the area or more, flips.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
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
from .simclr import SimclrRun
from .training_run import Adversary, EpochReport, TrainingRecipe, TrainingRun
from .views import CroppedRun

PLAIN_INPUT = Input()
"""Of a network that takes pixels in [0, 1] as they are."""

SIMCLR = "simclr"
_PERMUTE = 0x9E12

RECIPES = {
    "paper": TrainingRecipe(
        lr=0.1, schedule="thirds", weight_decay=1e-4, epochs=200, batch_size=128
    ),
    "fast": TrainingRecipe(
        lr=0.1, schedule="one-cycle", weight_decay=5e-4, epochs=20, batch_size=128
    ),
    SIMCLR: TrainingRecipe(
        lr=0.1, schedule="thirds", weight_decay=1e-4, epochs=200, batch_size=128
    ),
    "imagenet": TrainingRecipe(
        lr=0.1,
        schedule="thirds",
        weight_decay=1e-4,
        epochs=90,
        batch_size=256,
        nesterov=False,
        smallest_crop=0.08,
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
    answers = staged.classifies or plan.epochs > 0
    check_fit(staged, source, given.shape(source.image_shape), answers=answers)
    staged.classes = source.classes if answers else None
    _check_attack(training.alpha, attack, given)
    place = torch.device(device)
    data = permuted(source.train, training.seed) if training.permute_labels else source.train
    staged.to(place, memory_format=torch.channels_last)
    last, seconds = None, 0.0
    if plan.epochs:
        run = _open_run(staged, source, data, training, attack, stream, precision, place)
        started = time.perf_counter()
        with arithmetic(precision):
            for epoch in range(plan.epochs):
                last = run.epoch(epoch)
                if progress is not None:
                    progress(last)
        run.finish(data, device=place, **_seen(training))
        seconds = time.perf_counter() - started
    tested = score(staged, source, precision=precision, device=place, **_seen(training))
    staged.to("cpu", memory_format=torch.contiguous_format).eval()
    trained = (None, None) if last is None else (last.accuracy, last.loss)
    return DonorMetrics(*tested, *trained, seconds, plan.epochs)


def _seen(training: DonorTraining) -> dict[str, Any]:
    """How the network takes images, the marker on them included."""
    return {**vars(training.given), "shortcut": training.shortcut}


def _open_run(
    staged: Staged, source: Source, data: ImageSet, training: DonorTraining,
    attack: Adversary | None, stream: str, precision: str, place: torch.device,
) -> TrainingRun:  # fmt: skip
    plan, given = training.resolved, training.given
    kind = SimclrRun if training.recipe == SIMCLR else CroppedRun if plan.smallest_crop else None
    moved = (0, False) if kind else (training.pad, training.flip)
    seen = {"shortcut": training.shortcut} if kind else _seen(training)
    batches = open_stream(
        data, batch_size=plan.batch_size, seed=training.seed, augmentation=Augmentation(*moved),
        backend=stream, device=place, **seen,
    )  # fmt: skip
    if kind:
        return kind(
            staged, plan, batches, precision, given=given, image_shape=source.image_shape,
            flip=training.flip, seed=training.seed,
        )  # fmt: skip
    return TrainingRun(
        staged, plan, batches, precision, int(training.alpha * plan.batch_size), attack
    )


def score(staged: Staged, source: Source, **how: Any) -> tuple[float | None, float | None]:
    """Accuracy and loss on the test set; None where there are no labels, or no answers. `how` as of
    `evaluate`, whose `FulaError` it raises."""
    test = evaluate(staged, source.test, **how)
    known = source.labelled and staged.classifies
    return (test.accuracy, test.loss) if known else (None, None)


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
    an image gets no answer (see `measures.agreement.answered`). Of a model that gives embeddings
    no more than that is looked at: its score is NaN.
    """
    if staged.classifies:
        check_answers(staged.num_classes, images.num_classes, f"model '{staged.name}'", "the set")
    correct = loss = silent = torch.zeros((), dtype=torch.float64, device=device)
    with eval_mode(staged), arithmetic(precision):
        for batch in evaluation_batches(images, batch_size, device, **options):
            with autocast(batch.images.device, precision):
                logits = staged(batch.images).float()
            silent = silent + (~answered(logits)).sum()
            if staged.classifies:
                correct = correct + right(logits, batch.labels).sum()
                loss = loss + cross_entropy(logits, batch.labels, reduction="sum")
    _check_answers(staged, int(silent), len(images))
    if not staged.classifies:
        return Score(math.nan, math.nan)
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
