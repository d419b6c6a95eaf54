"""NVIDIA DALI as a decoder of image files; the stream over it is in `dali_stream`.

Without a GPU its pipelines run with `device_id=None`. DALI is optional: `require_dali` names the
command that installs it.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np

from ...errors import FulaError, printable
from .cache import cores
from .decoder import PillowDecoder, Pixels
from .folders import FolderIndex
from .headers import RULE, whole
from .images import with_channels

_log = logging.getLogger(__name__)
_GROUP = 256
_GROUP_BYTES = 16 << 20
_MOST_REJECTED = 100  # each costs some ten runs and a few new pipelines; more have a common cause
_OF_THE_MACHINE = re.compile(r"(?i)out of memory|alloc|cuda[ _]?error|cuda (runtime|driver)")

Files = dict[int, np.ndarray]
"""Samples and their encoded files, uint8 (length,)."""


def dali_installed() -> bool:
    """Whether DALI can be imported; does not import it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def require_dali() -> Any:
    """The `nvidia.dali` module, or `FulaError` naming the command that installs it."""
    if not dali_installed():
        raise FulaError(
            "NVIDIA DALI is not installed; run: pip install 'fula-fast[dali]' (for CUDA 12: "
            "[dali-cuda120]), or use stream = 'resident' and decoder = 'pillow'"
        )
    import nvidia.dali

    return nvidia.dali


def require_cuda(what: str) -> None:
    """Raise `FulaError` unless there is a CUDA device for `what`."""
    import torch

    if not torch.cuda.is_available():
        raise FulaError(f"{what} needs a CUDA device, there is none; use decoder = 'dali'")


def current_cuda() -> int:
    """The number of the CUDA device that torch uses in this thread."""
    import torch

    return torch.cuda.current_device()


def new_pipeline(batch_size: int, device_id: int | None):
    """An empty DALI pipeline that runs when called: inputs are handed to `run`."""
    dali = require_dali()
    return dali.Pipeline(
        batch_size=batch_size,
        num_threads=cores(),
        device_id=device_id,
        prefetch_queue_depth=1,
        exec_dynamic=True,  # shapes of what lies on a GPU are asked for on the host
    )


def decoded_files(size: int | None, decoder: str):
    """Graph: encoded files (input `files`) to uint8 RGB (H, W, 3), square at `size` if given.

    Resizing is that of `images.fit`: the central square, antialiased bilinear.
    """
    from nvidia.dali import fn, types

    encoded = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
    device = "mixed" if decoder == "gpu" else "cpu"
    images = fn.decoders.image(encoded, device=device, output_type=types.RGB)
    if size is None:
        return images
    shape = images.shape(dtype=types.FLOAT)[:2]
    side = fn.reductions.min(shape)
    return fn.resize(
        images,
        size=[size, size],
        roi_start=(shape - side) / 2,
        roi_end=(shape + side) / 2,
        interp_type=types.INTERP_TRIANGULAR,
        antialias=True,
    )


class DaliDecoder:
    """`decode.Decoder` by DALI; `device` "gpu" decodes JPEG on the current CUDA device.

    Files that are no whole JPEG or PNG are left to Pillow, which reads them or names them as
    broken. So is, with a logged warning, a single file that DALI rejects though Pillow reads it; an
    error of memory or device, and more than 100 such files, are DALI's own failure, a `FulaError`.

    Resizing costs more than decoding a small image, and leaves one of the right size as it
    is: it is left out until an image needs it.
    """

    def __init__(self, device: str = "cpu") -> None:
        dali = require_dali()
        if device == "gpu":
            require_cuda("decoder = 'dali-gpu'")
        self.device = device
        self.name = f"dali{dali.__version__}-{device}-rule{RULE}"
        self._pillow = PillowDecoder()
        self._pipelines: dict[int | None, Any] = {}
        self._resizing = False
        self._rejected: set[str] = set()
        self._one_at_a_time = Lock()  # streams decode in threads of their own

    def __call__(
        self,
        index: FolderIndex,
        samples: Sequence[int],
        size: int | None,
        channels: int,
        on_error: str = "raise",
    ) -> Pixels:
        images: Pixels = []
        with self._one_at_a_time:
            for group in _groups(index, samples):
                images += self._decode(index, group, size, on_error)
        return [None if i is None else with_channels(i[None], channels)[0] for i in images]

    def _decode(
        self, index: FolderIndex, samples: list[int], size: int | None, on_error: str
    ) -> Pixels:
        files = {i: file for i in samples if (file := self.read(index, i)) is not None}
        images = self._sound(index, files, size)
        others = [i for i in samples if i not in images]
        images |= zip(others, self._pillow(index, others, size, 3, on_error), strict=True)
        return [images[i] for i in samples]

    def read(self, index: FolderIndex, i: int) -> np.ndarray | None:
        """The file of sample `i` if DALI may decode it (see `headers`), and has not rejected it."""
        if self.rejects(index, [i]):
            return None
        try:
            file = index.read(i)
        except OSError:
            return None  # Pillow's turn, which names it
        return file if whole(file.tobytes()) else None

    def rejects(self, index: FolderIndex, samples: Iterable[int]) -> bool:
        """Whether DALI has failed on one of the samples, which is Pillow's since."""
        return bool(self._rejected) and any(index.where(i) in self._rejected for i in samples)

    def _sound(self, index: FolderIndex, files: Files, size: int | None) -> dict[int, np.ndarray]:
        """The images of those `files` that Pillow can read, but for what DALI rejects."""
        try:
            return self._run(files, size)
        except RuntimeError as error:
            self._pipelines.clear()  # one that has failed is no longer valid
            read = self._pillow(index, list(files), 8, 3, "skip")
            sound = [i for i, image in zip(files, read, strict=True) if image is not None]
            if len(sound) == len(files) == 1:
                self._reject(index, sound[0], size, error)
                return {}
        half = len(sound) // 2 if len(sound) == len(files) else 0
        return {
            i: image
            for part in (sound[:half], sound[half:])
            for i, image in self._sound(index, {i: files[i] for i in part}, size).items()
        }

    def _reject(self, index: FolderIndex, i: int, size: int | None, error: RuntimeError) -> None:
        """Leave the sound file of sample `i`, on which DALI failed by itself, to Pillow.

        Raises `FulaError` where the failure is not the file's: of memory or device, one that two
        small images of our own meet too, or one of many.
        """
        cause = str(error).rpartition("encountered:")[2]  # before it, lines of our own code
        of_the_file = not _OF_THE_MACHINE.search(cause) and self._works(size)
        if not of_the_file or len(self._rejected) == _MOST_REJECTED:
            raise dali_failed(index, [i], error) from error
        self._rejected.add(index.where(i))
        _log.warning(
            "DALI cannot decode '%s' (%s); it is left to Pillow",
            printable(index.where(i)),
            reason(error),
        )

    def _works(self, size: int | None) -> bool:
        """Whether DALI decodes a JPEG and a PNG that are surely sound."""
        try:
            self._outputs([_small_image("JPEG"), _small_image("PNG")], size)
        except RuntimeError:
            self._pipelines.clear()
            return False
        return True

    def _run(self, files: Files, size: int | None) -> dict[int, np.ndarray]:
        if not files:
            return {}
        encoded = list(files.values())
        out = None if size is not None and self._resizing else self._outputs(encoded, None)
        if out is None or (size is not None and not all_square(out.shape(), size)):
            self._resizing = True
            out = self._outputs(encoded, size)
        host = out.as_cpu() if self.device == "gpu" else out
        return {i: np.array(host.at(k)) for k, i in enumerate(files)}

    def _outputs(self, files: list[np.ndarray], size: int | None) -> Any:
        if size not in self._pipelines:
            pipeline = new_pipeline(_GROUP, current_cuda() if self.device == "gpu" else None)
            with pipeline:
                pipeline.set_outputs(decoded_files(size, self.device))
            self._pipelines[size] = pipeline
        (out,) = self._pipelines[size].run(files=files)
        return out


def _small_image(kind: str) -> np.ndarray:
    """A sound file of a type, encoded."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(out, kind)
    return np.frombuffer(out.getvalue(), np.uint8)


def dali_failed(index: FolderIndex, samples: Sequence[int], error: RuntimeError) -> FulaError:
    """The error for a run of DALI that failed although every file of it can be read."""
    more = f" and {len(samples) - 1} more images" if len(samples) > 1 else ""
    return FulaError(
        f"DALI failed on '{index.where(samples[0])}'{more}, which can be read ({reason(error)}); "
        "use decoder = 'pillow'"
    )


def all_square(shapes: Iterable[Sequence[int]], size: int) -> bool:
    """Whether all shapes (H, W, C) are square at `size`."""
    return all(tuple(shape[:2]) == (size, size) for shape in shapes)


def _groups(index: FolderIndex, samples: Sequence[int]) -> Iterator[list[int]]:
    """Samples in groups of bounded count and bytes, so that huge images do not pile up decoded."""
    group: list[int] = []
    total = 0
    for i in samples:
        size = index.size(i)
        if group and (len(group) == _GROUP or total + size > _GROUP_BYTES):
            yield group
            group, total = [], 0
        group.append(i)
        total += size
    if group:
        yield group


def reason(error: Exception) -> str:
    """The telling line of a DALI error, which also repeats the pipeline's definition."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "encountered:" in lines[:-1]:
        return lines[lines.index("encountered:") + 1].rstrip(": ")
    return lines[0] if lines else type(error).__name__
