"""Robust accuracy of models: the entry used by sweeps and the command line.

    (result,) = robust_evaluate(model, images, labels, "autoattack-rand", eps=8 / 255)

`result.robust_accuracy` and its fellows follow; `attack_checkpoint` does it for a stored donor.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..device.precision import arithmetic
from ..errors import FulaError, FulaWarning
from ..files.atomic import replacing
from ..files.paths import user_path
from ..models import Normalised, Staged, load_checkpoint
from ..models.labels import check_label_order, check_stored_normalisation
from ..pipelines import Normalisation, Source
from .autoattack import Run, run
from .losses import LogitsFn, predict
from .names import DEFAULT, NamedAttack, prepared
from .options import CPU_BATCH, CUDA_BATCH, AttackOptions
from .packed import as_packed
from .record import Record, as_floats
from .start_noise import reproducible


@dataclass(frozen=True, eq=False)
class RobustResult:
    """How one model (lane) fared. All arrays are on the host, one row per image.

    correct: the clean image is classified rightly; robust: and no attack changed that;
    zero_gradient: attacked, but the gradient of its cross-entropy at the clean image, from where
    the attack starts, is exactly zero, so that no gradient attack says anything of it. logits and
    predictions (-1: NaN): on the adversarial image where there is one, else on the clean one;
    witness_logits: the witness's on the same images. gradients: image gradients taken
    (every EOT sample counts; those that look for zero ones do not); verified: images shown to the
    exact model. settings: the attack's options, JSON-able. deterministic: None where it was not
    asked.
    """

    attack: str
    correct: Tensor
    robust: Tensor
    zero_gradient: Tensor
    predictions: Tensor
    logits: Tensor
    witness_logits: Tensor | None
    gradients: int
    verified: int
    deterministic: bool | None
    mode: str
    settings: dict[str, Any]
    images: Tensor = field(repr=False)
    found: dict[int, Tensor] | None = field(repr=False)

    @property
    def adversarial(self) -> Tensor | None:
        """Every image as it was seen last, (N, C, H, W) floats on the host: the adversarial one
        where there is one, else the clean one. None unless keep_images was asked for."""
        if self.found is None:
            return None
        images = as_floats(self.images).cpu().clone()
        for image, pixels in self.found.items():
            images[image] = pixels
        return images

    @property
    def clean_accuracy(self) -> float:
        """Share of images classified rightly."""
        return self.correct.double().mean().item()

    @property
    def robust_accuracy(self) -> float:
        """Share of images classified rightly under attack."""
        return self.robust.double().mean().item()

    @property
    def zero_gradient_images(self) -> int:
        """Attacked images, fooled or not, whose gradient is exactly zero at the start."""
        return int(self.zero_gradient.sum())

    def row(self) -> dict[str, Any]:
        """The columns of a results table.

        robust_clean_accuracy: of the same model in the same precision on the same, clean images
        (the table's `accuracy` may be of all images, and of a model in bfloat16);
        robust_precision: of the search, as every image is confirmed in full precision.
        """
        return {
            "robust_attack": self.attack,
            "robust_accuracy": self.robust_accuracy,
            "robust_clean_accuracy": self.clean_accuracy,
            "robust_images": len(self.robust),
            "robust_zero_gradient_images": self.zero_gradient_images,
            "robust_gradients": self.gradients,
            "robust_verified": self.verified,
            "robust_mode": self.mode,
            **{f"robust_{name}": self.settings[name] for name in ("norm", "eps", "precision")},
        }


def robust_evaluate(
    models: object,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    attack: str = DEFAULT,
    *,
    device: torch.device | str | None = None,
    witness: LogitsFn | None = None,
    **options: Any,
) -> list[RobustResult]:
    """Attack every model on every image it classifies rightly; one result per model.

    models: a module, a function of the images, a sequence of those, or a `PackedModel` (lanes that
    share work). Modules are copied, and attacked in eval mode whatever mode they are in. images:
    (N, C, H, W) uint8, or floats in [0, 1]; a NumPy array may be (N, H, W, C) uint8. labels: (N,).
    attack: a name (see `names`). options: fields of `AttackOptions`, and of `Savings` by their
    own names (compaction=False), see `options`. device: where to work; the models' own by default.
    witness: another model (eval-mode logits of images on that device) to be shown the images that
    the result ends with, so that agreement on adversarial images needs no copy of them.

    A logit that is NaN makes its prediction wrong. With eps = 0 robust is `correct`. Raises
    `FulaError` for an unknown name or option, labels out of range, pixels outside [0, 1], no image,
    and too few classes for the attack's loss.
    """
    named, chosen = prepared(attack, options)
    packed = as_packed(models, compile=chosen.compiles, device=device)
    x, y = _tensors(images, labels, packed.device if device is None else device)
    if chosen.batch_size is None:
        chosen = replace(chosen, batch_size=CUDA_BATCH if x.is_cuda else CPU_BATCH)
    if chosen.mode == "captured" and not x.is_cuda:
        raise FulaError("mode = 'captured' needs models on a CUDA device; use mode = 'auto'")
    with arithmetic("fp32"), reproducible(chosen.seed):
        record = Record(
            packed, x, y, batch_size=chosen.batch_size, keep_images=chosen.keep_images,
            witness=witness,
        )  # fmt: skip
        went = run(packed, record, named, chosen)
    results = [_result(record, lane, named, chosen, went) for lane in range(packed.lanes)]
    _warn_of_zero_gradients(results)
    return results


class ZeroGradientWarning(FulaWarning):
    """Robustness that may be a vanished gradient."""


_TELLING = 1 / 20
"""The share of attacked images from which a warning is worth it: in float32 the softmax of a sure
network saturates on a few."""


def _warn_of_zero_gradients(results: Sequence[RobustResult]) -> None:
    most = max(results, key=lambda r: r.zero_gradient_images)
    count, attacked = most.zero_gradient_images, int(most.correct.sum())
    if count and count >= _TELLING * attacked:
        robust = int((most.zero_gradient & most.robust).sum())
        warnings.warn(
            f"{count} of {attacked} images have a gradient of exactly zero at the start of "
            f"'{most.attack}' ({robust} withstand it): no gradient attack can move them, robust or "
            "not; look for a rounding, a threshold or a detached input in the model, and use "
            "'autoattack-full', whose Square attack needs no gradient",
            ZeroGradientWarning,
            stacklevel=3,
        )


def _tensors(
    images: Tensor | np.ndarray, labels: Tensor | np.ndarray, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,) on `device`."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor | np.ndarray):
            raise FulaError(
                f"{name} are a {type(given).__name__}; give a tensor or a NumPy array: images "
                "(N, C, H, W), labels (N,)"
            )
        if isinstance(given, np.ndarray) and given.dtype.kind not in "biuf":
            raise FulaError(f"{name} are an array of {given.dtype}; give numbers")
    if isinstance(images, np.ndarray):
        channels_last = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] > 4
        images = torch.from_numpy(np.ascontiguousarray(images))
        images = images.permute(0, 3, 1, 2) if channels_last else images
    labels = torch.as_tensor(labels)
    labels = labels if labels.dtype.is_floating_point else labels.to(torch.int64)
    return images.to(device), labels.to(device)


def _result(
    record: Record, lane: int, named: NamedAttack, options: AttackOptions, went: Run
) -> RobustResult:
    logits = record.logits[lane]
    return RobustResult(
        attack=named.name,
        correct=record.correct[lane],
        robust=record.correct[lane] & ~record.fooled[lane],
        zero_gradient=record.zero_gradient[lane],
        predictions=predict(logits),
        logits=logits,
        witness_logits=None if record.witness_logits is None else record.witness_logits[lane],
        gradients=int(record.gradients[lane]),
        verified=int(record.verified[lane]),
        deterministic=went.deterministic,
        mode=went.mode,
        settings=_settings(named, options, went),
        images=record.images,
        found=record.found_by(lane),
    )


def _settings(named: NamedAttack, options: AttackOptions, went: Run) -> dict[str, Any]:
    """Everything that decided the outcome, JSON-able."""
    kept = {k: v for k, v in asdict(options).items() if k not in ("starts", "keep_images")}
    return {**kept, "steps": named.steps, "eot": named.eot, "eot_taken": went.eot}


def attack_checkpoint(
    path: str | Path,
    source: Source,
    attack: str = DEFAULT,
    *,
    limit: int | None = None,
    output: str | Path | None = None,
    normalisation: Normalisation | None = None,
    into: Staged | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> RobustResult:
    """Attack the donor stored at `path` on the (first `limit`) test images of `source`.

    output: write the adversarial examples there (`save_examples`). normalisation: what the donor
    was trained with, put before it, so that the attack stays in pixels. into: see
    `load_checkpoint`. device, options: as for `robust_evaluate`. Raises `FulaError` where images
    and model do not fit.
    """
    prepared(attack, options)
    staged = load_checkpoint(path, into=into)
    test = source.test
    if tuple(staged.input_shape) != test.image_shape or staged.num_classes != test.num_classes:
        raise FulaError(
            f"checkpoint '{path}' takes images {tuple(staged.input_shape)} of "
            f"{staged.num_classes} classes, but source '{source.name}' has {test.image_shape} of "
            f"{test.num_classes}; give the donor's own source, or its size and channels"
        )
    check_label_order(
        staged.classes, test.classes, f"checkpoint '{path}'", f"source '{source.name}'"
    )
    check_stored_normalisation(staged, normalisation, f"checkpoint '{path}'")
    model = staged
    if normalisation is not None:
        model = Normalised(staged, normalisation.mean, normalisation.std)
    images = np.ascontiguousarray(test.images[:limit])
    kept = {"keep_images": True} if output is not None else {}
    (result,) = robust_evaluate(
        model, images, test.labels[:limit], attack, device=device, **options | kept
    )
    if output is not None:
        save_examples(output, result, test.labels[:limit])
    return result


def save_examples(path: str | Path, result: RobustResult, labels: np.ndarray) -> None:
    """Write a result's images as a compressed npz, atomically.

    Arrays, one row per image: `adversarial` float32 (N, C, H, W) (the clean image where nothing
    fooled the model), `labels`, `predictions`, `correct`, `robust`; and `settings`, JSON.
    """
    path = user_path(path)
    adversarial = result.adversarial
    if adversarial is None:
        raise FulaError("the adversarial images were not kept; attack with keep_images=True")
    arrays = {
        "adversarial": adversarial.float().numpy(),
        "labels": np.asarray(labels),
        **{n: getattr(result, n).numpy() for n in ("predictions", "correct", "robust")},
        "settings": np.array(json.dumps({"attack": result.attack, **result.settings})),
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
