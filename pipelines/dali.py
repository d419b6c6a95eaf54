"""NVIDIA DALI as a decoder of image files; the stream over it is in `dali_stream`.

Without a GPU its pipelines run with `device_id=None`. DALI is optional: `require_dali` names the
command that installs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..errors import FulaError
from .cache import cores
from .decode import Pixels, unreadable
from .folders import FolderIndex
from .images import with_channels

_GROUP = 256
_GROUP_BYTES = 16 << 20


def dali_installed() -> bool:
    """Whether DALI can be imported; does not import it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def require_dali() -> Any:
    """The `nvidia.dali` module, or `FulaError` naming the command that installs it."""
    if not dali_installed():
        raise FulaError(
            "NVIDIA DALI is not installed; run: pip install 'fula-fast[dali]', or use stream = "
            "'resident' and decoder = 'pillow'"
        )
    import nvidia.dali

    return nvidia.dali


def new_pipeline(batch_size: int, device_id: int | None):
    """An empty DALI pipeline that runs when called: inputs are handed to `run`."""
    dali = require_dali()
    return dali.Pipeline(
        batch_size=batch_size, num_threads=cores(), device_id=device_id, prefetch_queue_depth=1
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
    """`decode.Decoder` by DALI; `device` "gpu" decodes JPEG on the GPU.

    Resizing costs more than decoding a small image, and leaves one of the right size as it is: it
    is left out until an image needs it.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.name = f"dali{require_dali().__version__}-{device}"
        self._pipelines: dict[int | None, Any] = {}
        self._resizing = False

    def __call__(
        self,
        index: FolderIndex,
        samples: Sequence[int],
        size: int | None,
        channels: int,
        on_error: str = "raise",
    ) -> Pixels:
        images: Pixels = []
        for group in _groups(index, samples):
            images += self._decode(index, group, size, on_error)
        return [None if i is None else with_channels(i[None], channels)[0] for i in images]

    def _decode(
        self, index: FolderIndex, samples: list[int], size: int | None, on_error: str
    ) -> Pixels:
        """Decode all at once; where that fails, each half, down to the unreadable file."""
        try:
            return self._run([index.read(i) for i in samples], size)
        except (RuntimeError, OSError) as error:
            self._pipelines.clear()  # one that has failed is no longer valid
            if len(samples) == 1:
                if on_error == "skip":
                    return [None]
                raise unreadable(index.where(samples[0]), reason(error)) from error
        half = len(samples) // 2
        return [
            image
            for part in (samples[:half], samples[half:])
            for image in self._decode(index, part, size, on_error)
        ]

    def _run(self, files: list[np.ndarray], size: int | None) -> list[np.ndarray]:
        out = None if size is not None and self._resizing else self._outputs(files, None)
        if out is None or (size is not None and not all_square(out.shape(), size)):
            self._resizing = True
            out = self._outputs(files, size)
        host = out.as_cpu() if self.device == "gpu" else out
        return [np.array(host.at(i)) for i in range(len(files))]

    def _outputs(self, files: list[np.ndarray], size: int | None) -> Any:
        if size not in self._pipelines:
            pipeline = new_pipeline(_GROUP, 0 if self.device == "gpu" else None)
            with pipeline:
                pipeline.set_outputs(decoded_files(size, self.device))
            self._pipelines[size] = pipeline
        (out,) = self._pipelines[size].run(files=files)
        return out


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
        return lines[lines.index("encountered:") + 1]
    return lines[0] if lines else type(error).__name__
