"""Donor checkpoints: safetensors with JSON metadata and a content hash.

Files that other programs wrote are read too; see `foreign`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import FulaError
from ..files import sealed
from ..files.paths import user_path
from ..files.sealed import DONOR
from .copies import unwrapped
from .foreign import Foreign, fitted, read_foreign, unreadable
from .headed import answering, without_classifier
from .libraries import DOWNLOADS
from .named import build
from .staged import Staged
from .stored import Described, Stored, is_ours, is_safetensors

_log = logging.getLogger(__name__)


def content_hash(staged: Staged) -> str:
    """SHA-256 (hex) over the sorted weights and buffers: name, shape, bytes (floats as float32).

    Independent of where sites lie: hooks and cuts do not change it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(staged.state().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        plain = value.detach().float() if value.is_floating_point() else value
        digest.update(np.ascontiguousarray(plain.cpu().numpy()).data)  # not copied: it may be large
    return digest.hexdigest()


def save_checkpoint(staged: Staged, path: str | Path, meta: Mapping[str, Any] | None = None) -> str:
    """Write a donor atomically, with `meta` (JSON-able) beside its description; returns its hash.

    Raises `FulaError` where the file cannot be written; nothing is left half-written.
    """
    staged = unwrapped(staged)
    if not isinstance(staged, Staged):
        raise FulaError(
            f"a checkpoint of ours holds a model cut into stages, not a {type(staged).__name__}; "
            "cut it with fula_fast.stages(module, sites=[...], input_shape=(C, H, W))"
        )
    if staged.preparation is not None:
        raise FulaError(
            f"a checkpoint of ours holds no input of model '{staged.name}'; save the model without "
            "it, and give it in [donors.NAME.input]"
        )
    digest = content_hash(staged)
    named = {"content_hash": digest, "donor": _description(staged), "meta": dict(meta or {})}
    sealed.write_tensors(user_path(path), DONOR, staged.state(), named)
    return digest


def load_checkpoint(
    path: str | Path, *, into: Staged | None = None, hook: str | None = None, answers: bool = True
) -> Staged:
    """The donor stored at `path`, on the CPU, in eval mode.

    `into` gives the model to fill, needed for a file in PyTorch's format and for a module cut by
    `stages`; otherwise it is rebuilt from the file, with its sites at `hook` (default: as saved).
    Where its own `answers` are not asked for (a head takes the classifier's place), a classifier
    that does not fit is left out of a foreign file, with a logged line, and is zero.
    A normalisation that stands beside a foreign network is in its `normalisation`. Raises
    `FulaError` naming the file: missing, truncated, altered, or not fitting.
    """
    path = user_path(path)
    meta = None
    if not is_safetensors(path):
        content = read_foreign(path)
    elif is_ours(path):
        content, meta = sealed.read_tensors(path, DONOR, Stored)
    else:
        content = _safetensors_state(path)
    staged = into if into is not None else _rebuild(path, meta and meta.donor, hook)
    found = Foreign(content) if meta else fitted(path, content, staged.state())
    staged.normalisation = found.normalisation
    try:
        staged.load_state(found.state if answers or meta else _answerless(path, staged, found))
    except FulaError as error:
        raise FulaError(f"checkpoint '{path}': {error}") from None
    if meta and content_hash(staged) != meta.content_hash:
        raise sealed.Damaged(path, DONOR, "its content hash differs, so it was altered")
    if meta and meta.donor.classes:
        staged.classes = meta.donor.classes
    return staged.eval()


def _answerless(path: Path, staged: Staged, found: Foreign) -> dict[str, Tensor]:
    """Its state without a classifier that is another one's."""
    state, left = without_classifier(staged, found.state)
    if left:
        shapes = ", ".join(f"{n} {tuple(found.state[n].shape)}" for n in left[:4])
        _log.warning("checkpoint '%s': its classifier is left out (%s)", path, shapes)
    return state


def _description(staged: Staged) -> dict[str, Any]:
    classes = staged.network_classes
    return {
        "name": staged.name,
        "num_classes": staged.num_classes,
        "input_shape": list(staged.input_shape),
        "hook": staged.hook,
        "options": staged.options,
        "classes": staged.classes,
        **({} if classes is None else {"network_classes": classes}),
        **({"head": asdict(staged.fitted)} if staged.fitted else {}),
    }


def _rebuild(path: Path, donor: Described | None, hook: str | None) -> Staged:
    if donor is None:
        raise FulaError(
            f"checkpoint '{path}' holds weights without a description; say which model they are "
            "for: model = 'resnet18' in a donor's table, --model resnet18 on the command line, "
            "into = build(...) in Python"
        )
    if donor.name.startswith("module:"):
        raise FulaError(
            f"checkpoint '{path}' is of your own module {donor.name[7:]}; "
            "cut it with stages(...) and pass it as `into`"
        )
    options = {key: v for key, v in donor.options.items() if key not in DOWNLOADS}
    try:
        network = build(
            donor.name,
            num_classes=donor.built_classes,
            input_shape=donor.input_shape,
            hook=hook or donor.hook,
            **options,
        )
    except TypeError as error:  # an option that is none
        raise sealed.Damaged(path, DONOR, f"no model fits its description ({error})") from None
    return answering(network, donor.head)[0] if donor.head else network


def _safetensors_state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from None
