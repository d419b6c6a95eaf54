"""Donor checkpoints: safetensors with JSON metadata and a content hash.

Files in PyTorch's own format are read too (state dicts only, never pickled code).
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import FulaError
from ..files import sealed
from ..files.paths import user_path
from ..files.sealed import DONOR
from .named import build
from .staged import Staged
from .stored import Described, Stored, is_ours, is_safetensors

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_RENAMES = (("shortcut", "downsample"), ("linear", "fc"))


def content_hash(staged: Staged) -> str:
    """SHA-256 (hex) over the sorted weights and buffers: name, shape, bytes (floats as float32).

    Independent of where sites lie: hooks and cuts do not change it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(staged.state().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        plain = value.detach().float() if value.is_floating_point() else value
        digest.update(plain.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(staged: Staged, path: str | Path, meta: Mapping[str, Any] | None = None) -> str:
    """Write a donor atomically, with `meta` (JSON-able) beside its description; returns its hash.

    Raises `FulaError` where the file cannot be written; nothing is left half-written.
    """
    digest = content_hash(staged)
    named = {"content_hash": digest, "donor": _description(staged), "meta": dict(meta or {})}
    sealed.write_tensors(user_path(path), DONOR, staged.state(), named)
    return digest


def load_checkpoint(
    path: str | Path, *, into: Staged | None = None, hook: str | None = None
) -> Staged:
    """The donor stored at `path`, on the CPU, in eval mode.

    `into` gives the model to fill, needed for a file in PyTorch's format and for a module cut by
    `stages`; otherwise it is rebuilt from the file, with its sites at `hook` (default: as saved).
    Raises `FulaError` naming the file: missing, truncated, altered, or not fitting.
    """
    path = user_path(path)
    meta = None
    if not is_safetensors(path):
        state = _torch_state(path)
    elif is_ours(path):
        state, meta = sealed.read_tensors(path, DONOR, Stored)
    else:
        state = _safetensors_state(path)
    staged = into if into is not None else _rebuild(path, meta and meta.donor, hook)
    try:
        staged.load_state(state if meta else _renamed(state, staged.state()))
    except FulaError as error:
        raise FulaError(f"checkpoint '{path}': {error}") from None
    if meta and content_hash(staged) != meta.content_hash:
        raise sealed.Damaged(path, DONOR, "its content hash differs, so it was altered")
    if meta and meta.donor.classes:
        staged.classes = meta.donor.classes
    return staged.eval()


def _description(staged: Staged) -> dict[str, Any]:
    return {
        "name": staged.name,
        "num_classes": staged.num_classes,
        "input_shape": list(staged.input_shape),
        "hook": staged.hook,
        "options": staged.options,
        "classes": staged.classes,
    }


def _rebuild(path: Path, donor: Described | None, hook: str | None) -> Staged:
    if donor is None:
        raise FulaError(
            f"checkpoint '{path}' holds weights without a description; "
            "say which model they are for (name, num_classes, input_shape)"
        )
    if donor.name.startswith("module:"):
        raise FulaError(
            f"checkpoint '{path}' is of your own module {donor.name[7:]}; "
            "cut it with stages(...) and pass it as `into`"
        )
    try:
        return build(
            donor.name,
            num_classes=donor.num_classes,
            input_shape=donor.input_shape,
            hook=hook or donor.hook,
            **donor.options,
        )
    except TypeError as error:  # an option that is none
        raise sealed.Damaged(path, DONOR, f"no model fits its description ({error})") from None


def _safetensors_state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _torch_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _damaged(path, "it holds something else than tensors") from None
    except Exception as error:  # damaged bytes may raise anything
        raise _damaged(path, error) from error
    while isinstance(state, Mapping):
        inner = [state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FulaError(f"checkpoint '{path}' holds no state dict; save model.state_dict() instead")
    return dict(state)


def _damaged(path: Path, error: Exception | str) -> FulaError:
    reason = str(error).split("\n")[0][:120] or type(error).__name__
    return sealed.Damaged(path, DONOR, f"it is truncated or no checkpoint ({reason})")


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring common foreign names to the architecture's own: prefixes, `shortcut`, `linear`."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {_own_name(name, own): value for name, value in state.items()}


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    if name in own:
        return name
    parts = name.split(".")
    for foreign, native in _RENAMES:
        parts = [native if part == foreign else part for part in parts]
    candidate = ".".join(parts)
    return candidate if candidate in own else name
