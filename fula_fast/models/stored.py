"""What a checkpoint of ours says beside its weights. Without torch: planning reads it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..errors import FulaError
from ..files import sealed
from ..files.sealed import DONOR
from .heads import FittedHead

_SAFETENSORS_START = b"{"


class Described(BaseModel, extra="forbid"):
    """A checkpoint's model, described well enough to build it again.

    `network_classes`: what the network is built for, where those are not `num_classes` (0: an
    embedding). `head`: the one that was fitted to it.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    hook: str
    options: dict[str, Any]
    classes: tuple[str, ...] | None
    network_classes: int | None = None
    head: FittedHead | None = None

    @property
    def built_classes(self) -> int:
        """What the network itself is built for."""
        return self.num_classes if self.network_classes is None else self.network_classes


class Stored(BaseModel, extra="forbid"):
    """All that lies beside the weights of a donor; `meta` is the caller's own."""

    content_hash: str
    donor: Described
    meta: dict[str, Any]


def read_meta(path: str | Path) -> dict[str, Any]:
    """The `meta` that `save_checkpoint` stored, and the `content_hash`."""
    found = sealed.read_meta(Path(path), DONOR, Stored)
    return {**found.meta, "content_hash": found.content_hash}


def read_description(path: str | Path) -> Described | None:
    """What a checkpoint of ours says of its model; None where another program wrote the file.

    Raises `FulaError` where it cannot be read. The weights are not looked at.
    """
    path = Path(path)
    if not (is_safetensors(path) and is_ours(path)):
        return None
    return sealed.read_meta(path, DONOR, Stored).donor


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of tensors, by its first bytes or else its name.

    Raises `FulaError` for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            starts_right = file.read(9)[8:] == _SAFETENSORS_START
    except (OSError, ValueError) as error:
        raise FulaError(
            f"cannot read checkpoint '{path}': {getattr(error, 'strerror', None) or error}"
        ) from None
    return starts_right or path.suffix == ".safetensors"


def is_ours(path: Path) -> bool:
    """Whether the header is one of ours, of whatever kind; another program's says nothing."""
    return "kind" in sealed.foreign_head(path, DONOR)
