"""Tensors on disk: safetensors files, with JSON beside the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import replacing

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write `tensors` (NumPy arrays or torch tensors of any device) and JSON-able `meta`."""
    from safetensors.torch import save_file

    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, {"meta": json.dumps(meta)})


def read_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors whose names start with `prefix` (taken off), on the CPU, and the meta data."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = [name for name in sorted(file.keys()) if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        return tensors, json.loads(file.metadata()["meta"])


def _plain(value: Any) -> Tensor:
    """A contiguous CPU tensor that owns its memory: lanes hand over slices of one flat buffer."""
    import torch

    tensor = torch.as_tensor(value).detach().cpu().contiguous()
    owned = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if owned else tensor.clone()
