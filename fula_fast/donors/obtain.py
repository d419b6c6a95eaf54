"""From a spec's tables to loaded data and trained donors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..device.precision import PLAIN, precision_of
from ..errors import FulaError
from ..models import Staged
from ..models.copies import private_copy
from ..models.heads import head_choice
from ..models.labels import ANY_HEAD, accuracy_on, check_classifies, no_labels_for
from ..pipelines import FileSet, ImageSet, Input, Normalisation, Shortcut, Source, load_source
from ..progress import Progress
from ..study.donor_spec import DataSpec, DonorSpec
from .donor import Donor, donor_at_hand, donor_from_checkpoint, donor_path, ensure_donor, recipe_of
from .fitted_head import with_head
from .guessing import warn_near_chance


def open_source(data: DataSpec) -> Source:
    """The decoded data of a `[data]` table; raises `FulaError` where it is missing or
    unreadable."""
    source = load_source(
        data.source,
        data_dir=data.data_dir,
        size=data.size,
        channels=data.channels,
        download=data.download,
        **data.options,
    )
    limits = {"train": data.train_images, "test": data.test_images}
    return replace(source, **{s: _evenly(source, s, n) for s, n in limits.items() if n is not None})


def _evenly(source: Source, split: str, count: int) -> ImageSet | FileSet:
    images = getattr(source, split)
    if not isinstance(images, ImageSet | FileSet):
        raise FulaError(
            f"[data] {split}_images = {count}: '{source.name}' is made up, image by image, so none "
            "can be left out; leave the limit out, or give the source fewer images"
        )
    return images.evenly(count)


def normalisation_of(data: DataSpec, source: Source) -> Normalisation | None:
    """The per-channel normalisation of a `[data]` table's images: its own, else the source's.

    None where pixels stay in [0, 1], which `mean = 0` and `std = 1` ask for.
    """
    if data.normalises is None:
        return source.normalisation
    return Normalisation(data.mean, data.std) if data.normalises else None


def input_of(donor: DonorSpec, source: Source) -> Input:
    """What a donor takes of its own data's images, `source`."""
    own = donor.input and donor.input.normalisation(source.image_shape[0])
    return Input(donor.frame, own or normalisation_of(donor.images, source)).of(source.image_shape)


def as_published(donor: DonorSpec, data: DataSpec) -> bool:
    """Whether a donor's images are normalised as each data set was published with: where no table
    sets mean and std."""
    stated = donor.input is not None and donor.input.mean is not None
    return not stated and donor.images.normalises is None and data.normalises is None


def input_on(donor: DonorSpec, own: Source, data: DataSpec, source: Source) -> Input:
    """What a donor takes of the cells' images: `own` is its data, `source` that of `[data]`."""
    published = as_published(donor, data)
    moments = normalisation_of(data, source) if published else input_of(donor, own).normalisation
    return Input(donor.frame, moments).of(source.image_shape)


def is_to_train(spec: DonorSpec, source: Source, cache_dir: str | Path) -> bool:
    """Whether a donor is neither a file, nor a control that knows nothing, nor found trained."""
    if spec.checkpoint or spec.untrained:
        return False
    recipe = recipe_of(spec, source, input_of(spec, source))
    return not donor_path(cache_dir, recipe).exists()


def training_precision(asked: str) -> str:
    """Of donors, where cells are computed in `asked`: never double."""
    return PLAIN if precision_of(asked).bytes > precision_of(PLAIN).bytes else asked


def obtain_donor(
    spec: DonorSpec,
    source: Source,
    *,
    cache_dir: str | Path,
    hook: str = "post_relu",
    device: str | torch.device = "cpu",
    precision: str = PLAIN,
    module: Staged | None = None,
    progress: Progress | None = None,
) -> Donor:
    """The donor of a `[donors.*]` table: `module` itself where the caller has it, else from its
    checkpoint, from `cache_dir`, or trained now.

    `source`: the donor's own data. Raises `FulaError` where the donor is unusable, or below its
    `min_accuracy`.
    """
    progress = progress or Progress()
    given = input_of(spec, source)
    progress.donor_started(spec.name)
    place = {"device": device, "precision": precision}
    if module is not None:
        donor = _at_hand(spec, module, hook, source, given, **place)
    elif spec.checkpoint:
        donor = donor_from_checkpoint(
            spec.checkpoint,
            source,
            model=spec.model,
            options=spec.build_options(),
            hook=hook,
            given=given,
            answers=spec.head is None,
            **place,
        )
    else:
        donor = ensure_donor(
            recipe_of(spec, source, given),
            source,
            cache_dir=cache_dir,
            hook=hook,
            stream=spec.images.stream,
            replace_damaged=True,
            progress=lambda r: progress.donor_epoch(spec.name, r.epoch, r.epochs, r.loss),
            **place,
        )
    donor = _with_head(spec, donor, source, given, cache_dir, **place)
    _check_accuracy(spec, donor)
    control = spec.untrained or spec.permute_labels  # which is to know nothing
    if donor.metrics.test_accuracy is not None and not control:
        warn_near_chance(f"[donors.{spec.name}]", donor.metrics.test_accuracy, source.test)
    progress.donor_done(spec.name, donor.metrics.test_accuracy)
    return donor


def _at_hand(
    spec: DonorSpec, module: Staged, hook: str, source: Source, given: Input, **place: Any
) -> Donor:
    if module.hook != hook:
        raise FulaError(
            f"[donors.{spec.name}] is cut with hook = '{module.hook}', but a protocol of the grid "
            f"stitches at '{hook}'; cut it there, or set hook = '{module.hook}' in [protocol]"
        )
    copied, answers = private_copy(module).eval(), spec.head is None
    return donor_at_hand(copied, source, Path(spec.name), given=given, answers=answers, **place)


def _with_head(
    spec: DonorSpec, donor: Donor, source: Source, given: Input, cache_dir: str | Path, **place: Any
) -> Donor:
    """The donor with the head that its table names, or its own, which must answer labels."""
    if spec.head is None:
        if source.labelled:
            check_classifies(donor.staged, accuracy_on(source.name), ANY_HEAD)
        return donor
    shortcut = spec.shortcut and Shortcut(**spec.shortcut.model_dump())
    how = {"cache_dir": cache_dir, "given": given, "shortcut": shortcut, "replace_damaged": True}
    try:
        return with_head(donor, head_choice(spec.head), source, **how, **place)
    except FulaError as error:
        raise FulaError(f"[donors.{spec.name}] {error}") from None


def _check_accuracy(spec: DonorSpec, donor: Donor) -> None:
    got = donor.metrics.test_accuracy
    if spec.min_accuracy is not None and got is None:
        raise FulaError(no_labels_for(f"[donors.{spec.name}] min_accuracy"))
    if spec.min_accuracy is not None and got < spec.min_accuracy:
        fix = "give another checkpoint" if spec.checkpoint else "train longer, or widen the model"
        raise FulaError(
            f"[donors.{spec.name}] '{spec.checkpoint or donor.path.name}' has test accuracy "
            f"{got:.4f}, below min_accuracy = {spec.min_accuracy}; {fix}"
        )
