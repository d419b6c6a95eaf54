"""`Checkpoints`: how far the waves of a run have come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from ..files import sealed
from ..files.atomic import remove
from ..files.sealed import CHECKPOINT
from .finished import warn
from .shards import check_there, folder_of

if TYPE_CHECKING:
    from torch import Tensor


class _Progress(TypedDict):
    run: str
    wave: str
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of the run with the id `run` in `folder`, one file for each wave at work."""

    def __init__(self, folder: Path, run: str) -> None:
        self._run_folder, self._run = folder, run
        self._folder = folder / "checkpoints"

    def save(self, wave_id: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Replace the wave's checkpoint: named arrays or tensors, and JSON-able `meta`.

        Raises `FulaError` where the run's folder is gone or cannot be written.
        """
        check_there(self._run_folder)
        named = {"run": self._run, "wave": wave_id, "meta": meta}
        sealed.write_tensors(self._path(wave_id), CHECKPOINT, tensors, named)

    def load(self, wave_id: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The wave's checkpoint on the CPU, or `None`; a damaged one is named and ignored."""
        path = self._path(wave_id)
        try:
            tensors, found = sealed.read_tensors(path, CHECKPOINT, _Progress)
            if (found["run"], found["wave"]) != (self._run, wave_id):
                raise sealed.Damaged(path, CHECKPOINT, "it is of another wave or run")
        except FileNotFoundError:
            return None
        except sealed.Damaged as error:
            warn(error)
            remove(path)
            return None
        return tensors, found["meta"]

    def epochs_of(self, wave_id: str) -> int | None:
        """Epochs that the wave's checkpoint holds, without reading its tensors; None without one
        that can be read."""
        try:
            found = sealed.read_meta(self._path(wave_id), CHECKPOINT, _Progress)
        except (FileNotFoundError, sealed.Damaged):
            return None
        return found["meta"].get("epoch")

    def drop(self, wave_id: str) -> None:
        """Delete the wave's checkpoint, if there is one."""
        remove(self._path(wave_id))

    def drop_all(self) -> None:
        """Delete the checkpoints of all waves."""
        for path in self._folder.glob("*.safetensors"):
            remove(path)

    def _path(self, wave_id: str) -> Path:
        folder_of(wave_id)  # refuses ids that are no file names
        return self._folder / f"{wave_id}.safetensors"
