"""What is known of every (lane, image): clean and adversarial predictions, by the exact model.

Nothing is an adversarial image before the exact model (full precision, nothing folded) says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import FulaError
from ..kernels.reference import wide
from .losses import predict
from .packed import PackedModel


class Record:
    """Images (N, C, H, W), labels (N,), the exact model's view of them, and what fooled it.

    images: uint8, or float in [0, 1]; they stay where they are and are turned into float32 (float64
    stays) in batches. With L lanes: `logits` (L, N, classes) on the host, of the clean image until
    an adversarial one is confirmed; `correct` and `fooled` (L, N) bool; `gradients` and `verified`
    (L,) counts of image gradients and of images confirmed or refused. keep_images: remember the
    adversarial images too.

    Raises `FulaError` for labels out of range, pixels outside [0, 1], and no image at all.
    """

    def __init__(
        self, exact: PackedModel, images: Tensor, labels: Tensor, *, batch_size: int,
        keep_images: bool,
    ) -> None:  # fmt: skip
        self.exact, self.images, self.labels = exact, images, labels
        self._batch_size = batch_size
        _check_images(images, labels)
        self.logits = self._clean_logits()
        _check_labels(labels, self.num_classes)
        self._ranked = self.logits.argsort(2, descending=False)
        self.correct = (
            predict(self.logits.flatten(0, 1)) == labels.cpu().repeat(exact.lanes)
        ).view(exact.lanes, -1)
        self.fooled = torch.zeros_like(self.correct)
        self.found: dict[tuple[int, int], Tensor] | None = {} if keep_images else None
        self.gradients = np.zeros(exact.lanes, dtype=np.int64)
        self.verified = np.zeros(exact.lanes, dtype=np.int64)

    @property
    def num_classes(self) -> int:
        """Classes of the models."""
        return self.logits.shape[2]

    def pixels(self, index: Sequence[int]) -> Tensor:
        """Images `index` (n,) as floats in [0, 1]: (n, C, H, W)."""
        images = self.images[torch.as_tensor(index, device=self.images.device)]
        return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else wide(images)

    def surviving(self) -> list[tuple[int, int]]:
        """The (lane, image) pairs classified rightly and not fooled so far, lane by lane."""
        return [tuple(pair) for pair in (self.correct & ~self.fooled).nonzero().tolist()]

    def ranked_class(self, lane: int, image: int, rank: int) -> int:
        """The class of the rank-th largest clean logit (1: the predicted class)."""
        return int(self._ranked[lane, image, -rank])

    def confirm(self, pairs: Sequence[tuple[int, int]], adversarial: Tensor) -> list[bool]:
        """Whether the exact model gets each image (n, C, H, W) wrong; those are recorded."""
        lanes = torch.tensor([lane for lane, _ in pairs], device=adversarial.device)
        index = torch.tensor([image for _, image in pairs], device=adversarial.device)
        logits = self._exact_logits(adversarial, lanes)
        wrong = (predict(logits) != self.labels[index]).tolist()
        for (lane, image), image_logits, pixels, yes in zip(
            pairs, logits.cpu(), adversarial, wrong, strict=True
        ):
            self.verified[lane] += 1
            if yes:
                self.fooled[lane, image] = True
                self.logits[lane, image] = image_logits
                if self.found is not None:
                    self.found[lane, image] = pixels.cpu().clone()
        return wrong

    def adversarial(self, lane: int) -> Tensor | None:
        """Every image as that lane saw it last, (N, C, H, W) floats on the host: the adversarial
        image where there is one, else the clean one. None where images are not kept."""
        if self.found is None:
            return None
        images = self.pixels(range(len(self.images))).cpu()
        for (own, image), pixels in self.found.items():
            if own == lane:
                images[image] = pixels
        return images

    def _exact_logits(self, x: Tensor, lane: Tensor) -> Tensor:
        with torch.no_grad():
            return wide(self.exact.logits(x, lane))

    def _clean_logits(self) -> Tensor:
        """Every lane's logits of every image, (L, N, classes) on the host."""
        per_lane = []
        for lane in range(self.exact.lanes):
            seen = []
            for index in torch.arange(len(self.images)).split(self._batch_size):
                x = self.pixels(index)
                lanes = torch.full((len(index),), lane, device=x.device)
                seen.append(self._exact_logits(x, lanes).cpu())
            per_lane.append(torch.cat(seen))
        return torch.stack(per_lane)


def _check_images(images: Tensor, labels: Tensor) -> None:
    if len(images) == 0:
        raise FulaError("there is no image to attack; give at least one")
    if labels.shape != images.shape[:1]:
        raise FulaError(
            f"labels have shape {tuple(labels.shape)}, but there are {len(images)} images; "
            "give one class index per image"
        )
    if labels.dtype.is_floating_point:
        raise FulaError(f"labels are {labels.dtype}: they must be class indices (int64)")
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


def _check_labels(labels: Tensor, classes: int) -> None:
    bad = ((labels < 0) | (labels >= classes)).nonzero()[:, 0].tolist()
    if bad:
        raise FulaError(
            f"label {labels[bad[0]].item()} of image {bad[0]} is out of range: the model has "
            f"{classes} classes, 0 to {classes - 1}"
        )
