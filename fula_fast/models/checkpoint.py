"""Donor checkpoints: safetensors with JSON metadata and a content hash.

Files that other programs wrote are read too; see `foreign`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import FulaError
from .catalogue import build
from .foreign import Foreign, fitted, read_foreign, unreadable
from .staged import Staged

_SAFETENSORS_START = b"{"


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
    header = {
        "fula_fast": "1",
        "content_hash": digest,
        "donor": json.dumps(_description(staged)),
        "meta": json.dumps(dict(meta or {})),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in staged.state().items()}
    _write_atomically(Path(path), to_bytes(tensors, header))
    return digest


def read_meta(path: str | Path) -> dict[str, Any]:
    """The `meta` that `save_checkpoint` stored, and the `content_hash`."""
    header = _header(Path(path))
    return {**json.loads(header["meta"]), "content_hash": header["content_hash"]}


def load_checkpoint(
    path: str | Path, *, into: Staged | None = None, hook: str | None = None
) -> Staged:
    """The donor stored at `path`, on the CPU, in eval mode.

    `into` gives the model to fill, needed for a file in PyTorch's format and for a module cut by
    `stages`; otherwise it is rebuilt from the file, with its sites at `hook` (default: as saved).
    A normalisation that stands beside a foreign network is in its `normalisation`. Raises
    `FulaError` naming the file: missing, truncated, altered, or not fitting.
    """
    path = Path(path)
    ours = _is_safetensors(path)
    header = _header(path) if ours else {}
    content = _safetensors_state(path) if ours else read_foreign(path)
    staged = into if into is not None else _rebuild(path, header, hook)
    found = Foreign(content) if header else fitted(path, content, staged.state())
    staged.normalisation = found.normalisation
    try:
        staged.load_state(found.state)
    except FulaError as error:
        raise FulaError(f"checkpoint '{path}': {error}") from None
    if header and content_hash(staged) != header["content_hash"]:
        raise FulaError(f"checkpoint '{path}' was altered: its content hash differs; copy it again")
    names = json.loads(header["donor"]).get("classes") if header else None
    if names:
        staged.classes = tuple(names)
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


def _rebuild(path: Path, header: Mapping[str, str], hook: str | None) -> Staged:
    if not header:
        raise FulaError(
            f"checkpoint '{path}' holds weights without a description; say which model they are "
            "for: model = 'resnet18' in a donor's table, --model resnet18 on the command line, "
            "into = build(...) in Python"
        )
    donor = json.loads(header["donor"])
    if donor["name"].startswith("module:"):
        raise FulaError(
            f"checkpoint '{path}' is of your own module {donor['name'][7:]}; "
            "cut it with stages(...) and pass it as `into`"
        )
    return build(
        donor["name"],
        num_classes=donor["num_classes"],
        input_shape=donor["input_shape"],
        hook=hook or donor["hook"],
        **{key: v for key, v in donor["options"].items() if key not in _DOWNLOADS},
    )


_DOWNLOADS = ("pretrained", "weights")
"""Options that fetch weights, which the file's own would replace."""


def _is_safetensors(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            starts_right = file.read(9)[8:] == _SAFETENSORS_START
    except OSError as error:
        raise FulaError(f"cannot read checkpoint '{path}': {error.strerror}") from None
    return starts_right or path.suffix == ".safetensors"


def _header(path: Path) -> dict[str, str]:
    """The metadata, or nothing where another program wrote the file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise unreadable(path, error) from None
    return header if "fula_fast" in header else {}


def _safetensors_state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise unreadable(path, error) from None


def _write_atomically(path: Path, content: bytes) -> None:
    """Temporary file in the same folder, fsync, rename."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise FulaError(f"cannot write checkpoint '{path}': {error.strerror}") from None
