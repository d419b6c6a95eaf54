"""Whether a model and data speak of the same images and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import FulaError

if TYPE_CHECKING:
    from ..pipelines import Normalisation, Source
    from .staged import Staged

TRAINED_HEAD = "'linear-probe'"
ANY_HEAD = "'linear-probe', 'knn=20' or 'none'"
_WHERE = "in its [donors] table (in Python: stitch(..., head=...))"
HEAD_INSTEAD = f"set head = {ANY_HEAD} {_WHERE}, which takes its classifier's place"


def check_fit(
    staged: Staged, source: Source, given: Sequence[int] | None = None, *, answers: bool = True
) -> None:
    """Raise `FulaError` unless the model takes the source's images (`given`: their shape (C, H, W)
    where they are resized for it), and has as many classes, where the source has labels and
    `answers` are asked for."""
    asked = source.labelled and answers
    if asked:
        check_classifies(staged, accuracy_on(source.name), ANY_HEAD)
    if asked and staged.num_classes != source.num_classes:
        raise FulaError(
            f"model '{staged.name}' has {staged.num_classes} classes, but '{source.name}' has "
            f"{source.num_classes}; use a donor with num_classes = {source.num_classes}, or "
            f"{HEAD_INSTEAD}"
        )
    shape = tuple(given or source.image_shape)
    if staged.input_shape != shape:
        raise FulaError(
            f"model '{staged.name}' takes images {_dims(staged.input_shape)}, but '{source.name}' "
            f"has {_dims(shape)} (C×H×W); set size and channels of the data, or size in the "
            "donor's input"
        )


def check_classifies(staged: Staged, what: str, heads: str = TRAINED_HEAD) -> None:
    """Raise `FulaError` where `what` needs the answers of a model that gives embeddings; `heads`:
    those that would do."""
    if not staged.classifies:
        raise FulaError(no_answers_for(what, _embeds(staged), heads))


def check_gradient(staged: Staged, what: str) -> None:
    """Raise `FulaError` where `what` follows a gradient through the answers of a model that has
    none, or whose neighbours vote."""
    check_classifies(staged, what)
    if staged.fitted and staged.fitted.votes:
        raise FulaError(no_gradient_for(what, f"model '{staged.name}'"))


def no_answers_for(what: str, instead: str, heads: str = TRAINED_HEAD) -> str:
    """The message where `what` needs answers; `instead`: what there is, `model 'a' gives ...`."""
    return f"{what} needs a classifier, but {instead}; leave it out, or set head = {heads} {_WHERE}"


def no_gradient_for(what: str, role: str) -> str:
    """The message where `what` follows the gradient of votes."""
    return (
        f"{what} follows the gradient of answers, and the votes of neighbours (head = 'knn=K') of "
        f"{role} have none; leave it out, or set head = {TRAINED_HEAD} {_WHERE}"
    )


def accuracy_on(data: str) -> str:
    """What labelled data ask of a model."""
    return f"accuracy on the labels of '{data}'"


def check_answers(classes: int, data_classes: int, role: str, data: str) -> None:
    """Raise `FulaError` where data has labels that a model of `classes` classes cannot give.

    Whatever trains a stitch, its answers are compared with the labels.
    """
    if data_classes > classes:
        raise FulaError(
            f"{data} has labels 0 to {data_classes - 1}, but {role} answers with {classes} classes,"
            f" 0 to {classes - 1}; use data of its classes, leave the others' images out, or "
            f"{HEAD_INSTEAD}"
        )


def no_labels_for(what: str) -> str:
    """The message where `what` needs labels that the data do not have."""
    return f"{what} needs labels, which the data do not have; leave it out, or give (image, label)"


def check_label_order(
    known: Sequence[str] | None, classes: Sequence[str], role: str, data: str
) -> None:
    """Raise `FulaError` where a class of `data` had another label when the model was trained.

    `known` None, and names that only one side has, say nothing: other data may name classes anew.
    """
    label = {name: number for number, name in enumerate(known or ())}
    for number, name in enumerate(classes):
        if label.get(name, number) != number:
            raise FulaError(
                f"class '{name}' has label {label[name]} in {role} and {number} in {data}; give "
                f"the data that order (imagefolder: options.classes = {list(known)})"
            )


def check_stored_normalisation(staged: Staged, moments: Normalisation | None, role: str) -> None:
    """Raise `FulaError` unless images get the normalisation that lay beside the model's weights."""
    stored = staged.normalisation
    if stored is None:
        return
    given = ((), ()) if moments is None else (moments.mean, moments.std)
    if not all(
        len(a) == len(b) and all(map(_close, a, b)) for a, b in zip(stored, given, strict=True)
    ):
        mean, std = ([float(f"{v:.6g}") for v in part] for part in stored)
        raise FulaError(
            f"{role} has a normalisation beside its network, without which it computes something "
            f"else; set mean = {mean}, std = {std} for its images (in [data], in its [donors] "
            "input, in --data, or normalisation = ...)"
        )


def _close(a: float, b: float) -> bool:
    """Equal as float32 numbers."""
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1e-6)


def _embeds(staged: Staged) -> str:
    return f"model '{staged.name}' gives an embedding of {staged.num_classes} numbers"


def _dims(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
