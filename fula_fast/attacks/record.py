"""What is known of every (lane, image): clean and adversarial predictions, by the exact model.

Nothing is an adversarial image before the exact model (full precision, nothing folded) says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..errors import FulaError
from ..kernels.shared.sums import wide
from .losses import LogitsFn, check_label_form, check_labels, predict
from .packed import PackedModel


class Record:
    """Images (N, C, H, W), labels (N,), the exact model's view of them, and what fooled it.

    images: uint8, or float in [0, 1]; they stay where they are and are turned into float32 (float64
    stays) in batches. With L lanes: `logits` (L, N, classes) on the host, of the clean image until
    an adversarial one is confirmed; `correct` and `fooled` (L, N) bool, as is
    `zero_gradient` (classified rightly, and with a gradient of the cross-entropy that is zero in
    every pixel of the clean image); `gradients` and `verified` (L,) counts of image gradients and
    of images confirmed or refused. keep_images: remember the adversarial images too, in `found`.
    witness: a model, (n, C, H, W) -> (n, classes), whose logits on the same images are kept in
    `witness_logits` (L, N, classes).

    Raises `FulaError` for labels out of range, pixels outside [0, 1], and no image at all.
    """

    def __init__(
        self, exact: PackedModel, images: Tensor, labels: Tensor, *, batch_size: int,
        keep_images: bool, witness: LogitsFn | None = None,
    ) -> None:  # fmt: skip
        self.exact, self.images, self.labels = exact, images, labels
        self._batch_size, self._witness = batch_size, witness
        _check_images(images, labels)
        self.logits = torch.stack([self._clean(partial(self._exact, lane)) for lane in self.lanes])
        check_labels(labels, self.num_classes)
        self.witness_logits = None
        if witness is not None:
            self.witness_logits = self._clean(witness).repeat(exact.lanes, 1, 1)
        self.correct = (
            predict(self.logits.flatten(0, 1)) == labels.cpu().repeat(exact.lanes)
        ).view(exact.lanes, -1)
        self.fooled = torch.zeros_like(self.correct)
        self.zero_gradient = torch.zeros_like(self.correct)
        self.found: dict[tuple[int, int], Tensor] | None = {} if keep_images else None
        self.gradients = np.zeros(exact.lanes, dtype=np.int64)
        self.verified = np.zeros(exact.lanes, dtype=np.int64)

    @property
    def num_classes(self) -> int:
        """Classes of the models."""
        return self.logits.shape[2]

    def pixels(self, index: Sequence[int]) -> Tensor:
        """Images `index` (n,) as floats in [0, 1]: (n, C, H, W)."""
        return as_floats(self.images[torch.as_tensor(index, device=self.images.device)])

    def surviving(self) -> list[tuple[int, int]]:
        """The (lane, image) pairs classified rightly and not fooled so far, lane by lane."""
        return [tuple(pair) for pair in (self.correct & ~self.fooled).nonzero().tolist()]

    def ranked_class(self, lane: int, image: int, rank: int) -> int:
        """The class of the rank-th largest logit of an image not fooled (1: the predicted one)."""
        return int(self.logits[lane, image].sort()[1][-rank])

    def confirm(self, pairs: Sequence[tuple[int, int]], adversarial: Tensor) -> list[bool]:
        """Whether the exact model gets each image (n, C, H, W) wrong; those are recorded."""
        lanes = torch.tensor([lane for lane, _ in pairs], device=adversarial.device)
        index = torch.tensor([image for _, image in pairs], device=adversarial.device)
        with torch.no_grad():
            logits = wide(self.exact.logits(adversarial, lanes))
        wrong = predict(logits) != self.labels[index]
        np.add.at(self.verified, [lane for lane, _ in pairs], 1)
        if wrong.any():
            self._keep(lanes[wrong], index[wrong], adversarial[wrong], logits[wrong])
        return wrong.tolist()

    def _keep(self, lanes: Tensor, index: Tensor, images: Tensor, logits: Tensor) -> None:
        where = lanes.cpu(), index.cpu()
        self.fooled[where] = True
        self.logits[where] = logits.cpu()
        if self._witness is not None:
            with torch.no_grad():
                self.witness_logits[where] = wide(self._witness(images)).cpu()
        if self.found is not None:
            pairs = zip(*(part.tolist() for part in where), strict=True)
            self.found.update(zip(pairs, images.cpu(), strict=True))

    def found_by(self, lane: int) -> dict[int, Tensor] | None:
        """The adversarial images (C, H, W) of one lane by image; None where they are not kept."""
        if self.found is None:
            return None
        return {image: pixels for (own, image), pixels in self.found.items() if own == lane}

    @property
    def lanes(self) -> range:
        """Every lane's number."""
        return range(self.exact.lanes)

    def _exact(self, lane: int, x: Tensor) -> Tensor:
        return self.exact.logits(x, torch.full((len(x),), lane, device=x.device))

    def _clean(self, logits_fn: LogitsFn) -> Tensor:
        """Logits of every clean image, (N, classes) on the host."""
        with torch.no_grad():
            return torch.cat(
                [
                    wide(_checked(logits_fn, self.pixels(index))).cpu()
                    for index in torch.arange(len(self.images)).split(self._batch_size)
                ]
            )


def _checked(logits_fn: LogitsFn, x: Tensor) -> Tensor:
    """logits_fn(x); a model that does not take such images, or gives no logits, is refused."""
    shape = tuple(x.shape[1:])
    try:
        logits = logits_fn(x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = str(error).split("\n")[0][:160]
        raise FulaError(
            f"the model does not run on images of shape {shape} ({reason}); give images "
            "(N, C, H, W) of the channels and size that it takes"
        ) from error
    if not isinstance(logits, Tensor):
        raise FulaError(
            f"the model returns a {type(logits).__name__}, not a tensor; return the logits alone, "
            "for example lambda x: model(x)[0]"
        )
    if logits.ndim != 2 or len(logits) != len(x):
        raise FulaError(
            f"the model gives outputs of shape {tuple(logits.shape)} for {len(x)} images; return "
            "logits (N, classes)"
        )
    return logits


_MOST_CHANNELS = 4
"""Where the last axis is no longer than this, and the two before are, it holds the channels."""


def as_floats(images: Tensor) -> Tensor:
    """uint8 images, or floats in [0, 1], as float32 in [0, 1]; float64 stays."""
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else wide(images)


def _check_images(images: Tensor, labels: Tensor) -> None:
    if len(images) == 0:
        raise FulaError("there is no image to attack; give at least one")
    if images.ndim != 4:
        raise FulaError(f"images have shape {tuple(images.shape)}; give them as (N, C, H, W)")
    if images.shape[3] <= _MOST_CHANNELS < min(images.shape[1:3]):
        raise FulaError(
            f"images have shape {tuple(images.shape)}, with channels last; give (N, C, H, W), as "
            "images.permute(0, 3, 1, 2) of a tensor"
        )
    check_label_form(labels, len(images))
    if images.dtype == torch.uint8:
        return
    if not images.dtype.is_floating_point:
        raise FulaError(f"images are {images.dtype}: they must be uint8, or floats in [0, 1]")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise FulaError(
            f"pixels range from {low:g} to {high:g}: attacks work on [0, 1]; divide by 255, and "
            "put any normalisation inside the model"
        )
