"""The head of a donor that a spec asks for: fitted to the training set's features of the frozen
network, and stored with it as one donor.

    donor = with_head(donor, head_choice("knn=20"), source, cache_dir="donors")

Features are of unaugmented images, which come batch by batch; the features of all are held at once
(`models.heads.fitting_bytes`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..device.memory import CPU_SHARE, available_memory
from ..device.precision import PLAIN
from ..errors import FulaError
from ..models import Staged, load_checkpoint
from ..models.headed import TEMPERATURE, answering, features_of
from ..models.heads import FittedHead, HeadChoice, check_room
from ..models.labels import no_labels_for
from ..pipelines import FileSet, ImageSet, Input, Shortcut, Source
from .donor import Donor, DonorMetrics, donor_path, store_donor, stored_or_made
from .linear_probe import PENALTY, features, linear_probe
from .training import PLAIN_INPUT, score


def with_head(
    donor: Donor,
    choice: HeadChoice,
    source: Source,
    *,
    cache_dir: str | Path,
    given: Input = PLAIN_INPUT,
    shortcut: Shortcut | None = None,
    device: str | torch.device = "cpu",
    precision: str = PLAIN,
    replace_damaged: bool = False,
) -> Donor:
    """The donor with that head: loaded from `cache_dir` if it is there, else fitted to
    `source.train` and saved; tested on `source.test`.

    `given`, `shortcut`: how the network takes images, and the marker on them. Without a head it
    answers nothing. Raises `FulaError` for data without labels, for fewer images than neighbours,
    for features that memory does not hold, and where the network's answers are no linear layer's.
    """
    if not choice.fitted:
        return _unasked(donor)
    _check(choice, source)
    head = _head_of(donor.staged, choice, source)
    recipe = _recipe(donor, choice, source, given, shortcut)
    path = donor_path(cache_dir, recipe)
    how = {"device": device, "precision": precision, "shortcut": shortcut, **vars(given)}

    def make() -> DonorMetrics:
        room = int(available_memory() * CPU_SHARE)
        check_room(choice, head.features, len(source.train), room)
        chosen = replace(source, train=_chosen(source, choice))
        return _fit(donor, head, chosen, path, recipe, **how)

    def load() -> Staged:
        return load_checkpoint(path, into=answering(donor.staged, head)[0])

    return stored_or_made(path, recipe, load=load, make=make, replace_damaged=replace_damaged)


def foreseen(staged: Staged, choice: HeadChoice, source: Source) -> Staged:
    """The network as it will be with that head, which is yet to be fitted; raises what `with_head`
    raises before it computes anything."""
    if not choice.fitted:
        twin = copy.copy(staged)
        twin.classifies = False
        return twin
    _check(choice, source)
    return answering(staged, _head_of(staged, choice, source))[0]


def _unasked(donor: Donor) -> Donor:
    """The donor, whatever its network's last layer says, with nothing measured there."""
    donor.staged.classifies = False
    metrics = replace(donor.metrics, test_accuracy=None, test_loss=None)
    return replace(donor, metrics=metrics)


def _check(choice: HeadChoice, source: Source) -> None:
    if not source.labelled:
        raise FulaError(no_labels_for(f"head = '{choice}'"))
    count = choice.fitted_to(len(source.train))
    if choice.neighbours > count:
        raise FulaError(
            f"head = '{choice}' asks for more neighbours than the {count} training images of "
            f"'{source.name}'; lower it"
        )
    if choice.images and not isinstance(source.train, ImageSet | FileSet):
        raise FulaError(
            f"head = '{choice}': '{source.name}' is made up, image by image, so none can be left "
            "out; leave 'of' out"
        )


def _chosen(source: Source, choice: HeadChoice) -> ImageSet:
    return source.train.evenly(choice.images) if choice.images else source.train


def _head_of(staged: Staged, choice: HeadChoice, source: Source) -> FittedHead:
    images = choice.fitted_to(len(source.train)) if choice.neighbours else 0
    return FittedHead(features_of(staged), source.num_classes, choice.neighbours, images)


def _recipe(
    donor: Donor, choice: HeadChoice, source: Source, given: Input, shortcut: Shortcut | None
) -> dict[str, Any]:
    """What decides the headed donor: the network's weights, the images, and how it is fitted."""
    settings = {"temperature": TEMPERATURE} if choice.neighbours else {"penalty": PENALTY}
    return {
        "model": donor.staged.name,
        "network": donor.content_hash,
        "data": {"source": source.name, "content": source.content_hash},
        "normalisation": given.normalisation and asdict(given.normalisation),
        "frame": given.frame and asdict(given.frame),
        "shortcut": shortcut and asdict(shortcut),
        "head": str(choice),
        **settings,
    }


def _fit(
    donor: Donor, head: FittedHead, source: Source, path: Path, recipe: Mapping[str, Any],
    **how: Any,
) -> DonorMetrics:  # fmt: skip
    started = time.perf_counter()
    donor.staged.to(how["device"])
    x = features(donor.staged, source.train, **how)
    headed, module = answering(donor.staged, head)
    _fill(module, x, source.train)
    headed.to(how["device"])
    tested = score(headed, source, **how)
    for staged in (headed, donor.staged):
        staged.to("cpu")
    headed.classes = source.classes
    seconds = time.perf_counter() - started
    metrics = DonorMetrics(*tested, None, None, seconds, 0)
    store_donor(headed, path, recipe, metrics, {k: str(how[k]) for k in ("device", "precision")})
    return metrics


@torch.no_grad()
def _fill(module: nn.Module, x: Tensor, images: ImageSet) -> None:
    """The head's weights from features (n, d) of the images."""
    labels = np.asarray(images.labels)
    if isinstance(module, nn.Linear):
        weight, bias = linear_probe(x, labels, module.out_features)
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    else:
        module.bank = normalize(x, dim=1, out=x)  # not copied: they are many
        module.labels = torch.from_numpy(labels)
