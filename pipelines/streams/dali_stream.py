"""The DALI stream: decode (or take from memory), crop and flip in DALI, ahead of the consumer.

Order, crops and flips come from the host arrays through external sources, pixels leave DALI as
uint8, and markers and floats are made on our side, so batches equal the reference bit for bit from
decoded pixels on. A thread keeps `PREFETCH` batches ready, and another reads the files of the next
ones while DALI decodes; an abandoned epoch costs nothing, and resuming starts at any step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ...errors import FulaError
from ..decode.dali import (
    DaliDecoder,
    all_square,
    current_cuda,
    dali_failed,
    decoded_files,
    new_pipeline,
)
from ..decode.decoder import Decoder
from ..decode.files import FileSet
from ..decode.images import with_channels
from ..draws.randomness import EpochDraw
from ..draws.shortcuts import Markers
from .base import Batch, StreamBase, on_device

PREFETCH = 3


def _check_decoder(decoder: Decoder, device: torch.device) -> None:
    """Files decode here as they do when gathered, or batches would not equal the reference."""
    if not isinstance(decoder, DaliDecoder):
        raise FulaError(
            f"stream = 'dali' over files decodes with DALI, but they were loaded for "
            f"{decoder.name}; load them with decoder = 'dali'"
        )
    if decoder.device == "gpu" and device.type != "cuda":
        raise FulaError(
            f"decoder = 'dali-gpu' needs a CUDA device, the stream is on '{device}'; use decoder = "
            "'dali'"
        )


class DaliStream(StreamBase):
    """A stream through DALI over an `ImageSet` (in memory or mapped) or a `FileSet`."""

    image_set: Any  # either, as `_from_files` says

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._from_files = isinstance(self.image_set, FileSet)
        if self._from_files:
            _check_decoder(self.image_set.decoder, self.device)
        self._resizing = False  # until an image needs it; see DaliDecoder
        self._pipelines: dict[bool, Any] = {}
        self._pipeline(self._from_files)  # what is not installed is said now
        # One for good, of another priority: torch hands out few, in turn, so that a stream taken
        # later, or of the usual priority, may be the one that a graph is being captured on.
        cuda = self.device.type == "cuda"
        self._side = torch.cuda.Stream(self.device, priority=-1) if cuda else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fula-dali")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fula-read")

    def _pipeline(self, from_files: bool):
        """The pipeline whose input is encoded files, or images."""
        if from_files not in self._pipelines:
            self._pipelines[from_files] = self._build(from_files)
        return self._pipelines[from_files]

    def _build(self, from_files: bool):
        """Input (files or images) -> square uint8 -> zero-padded crop -> flip; and input shapes."""
        device_id = None
        if self.device.type == "cuda":
            device_id = current_cuda() if self.device.index is None else self.device.index
        pipeline = new_pipeline(self.batch_size, device_id)
        from nvidia.dali import fn, types

        _, height, width = self.image_set.image_shape
        with pipeline:
            if from_files:
                size = self.image_set.size if self._resizing else None
                images = decoded_files(size, self.image_set.decoder.device)
            else:
                images = fn.external_source(name="images", layout="HWC", dtype=types.UINT8, ndim=3)
            images = images if device_id is None or images.device == "gpu" else images.gpu()
            shapes = images.shape()
            start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
            images = fn.slice(
                images,
                start=start,
                shape=[height, width],
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=0,
            )
            flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
            pipeline.set_outputs(fn.flip(images, horizontal=flip), shapes)
        pipeline.build()
        return pipeline

    def batches(self, epoch: int, order: np.ndarray, start_step: int = 0) -> Iterator[Batch]:
        draw, markers = self.draw(epoch), self.markers(epoch)
        ahead: deque[Future[Batch]] = deque()
        try:
            for index in self.slices(order, start_step):
                files = self._reader.submit(self._read, index) if self._from_files else None
                ahead.append(self._thread.submit(self._batch, draw, markers, index, files))
                if len(ahead) > PREFETCH:
                    yield self._ready(ahead)
            while ahead:
                yield self._ready(ahead)
        finally:
            for future in ahead:
                future.cancel()

    def _ready(self, ahead: deque[Future[Batch]]) -> Batch:
        batch = ahead.popleft().result()
        if self.device.type == "cuda":  # made on the thread's stream, used on the caller's
            for tensor in batch:
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return batch

    def _read(self, index: np.ndarray) -> list[np.ndarray] | None:
        """The encoded files of a batch; None where DALI may not decode every one."""
        files = [self.image_set.decoder.read(self.image_set.index, i) for i in index]
        return None if any(file is None for file in files) else files

    def _batch(
        self,
        draw: EpochDraw,
        markers: Markers | None,
        index: np.ndarray,
        files: Future[list[np.ndarray] | None] | None,
    ) -> Batch:
        if self._side is None:
            return self.finish(self._run(draw, index, files), markers, index)
        with torch.cuda.stream(self._side):
            batch = self.finish(self._run(draw, index, files), markers, index)
        self._side.synchronize()  # DALI's buffer and the pinned host arrays are free again
        return batch

    def _run(
        self, draw: EpochDraw, index: np.ndarray, read: Future[list[np.ndarray] | None] | None
    ) -> torch.Tensor:
        """uint8 crops (B, H, W, C) of the samples `index`, on the stream's device."""
        corner = np.stack([draw.dy[index], draw.dx[index]], 1) - self.augmentation.pad
        inputs = {"start": corner.astype(np.int32), "flip": draw.flip[index].astype(np.int32)}
        files = None if read is None else read.result()
        if files is not None:
            return self._run_files(inputs, index, files)
        return self._run_images(inputs, self.image_set.gather(index))

    def _run_images(self, inputs: dict[str, np.ndarray], images: np.ndarray) -> torch.Tensor:
        out, _ = self._pipeline(False).run(images=images, **inputs)
        return self._tensor(out)

    def _run_files(
        self, inputs: dict[str, np.ndarray], index: np.ndarray, files: list[np.ndarray]
    ) -> torch.Tensor:
        try:
            out, shapes = self._pipeline(True).run(files=files, **inputs)
            if not self._resizing and not all_square(
                np.array(shapes.as_tensor()), self.image_set.size
            ):
                self._resizing = True
                del self._pipelines[True]
                out, _ = self._pipeline(True).run(files=files, **inputs)
        except RuntimeError as error:
            self._pipelines.pop(True, None)  # one that has failed is no longer valid
            images = self.image_set.gather(index)  # names a broken file, as DALI does not
            if self.image_set.decoder.rejects(self.image_set.index, index):
                return self._run_images(inputs, images)
            raise dali_failed(self.image_set.index, index, error) from error
        pixels = self._tensor(out)
        if self.image_set.channels == 3:
            return pixels
        return on_device(with_channels(pixels.cpu().numpy(), 1), self.device)

    def _tensor(self, out: Any) -> torch.Tensor:
        if self.device.type == "cuda":
            return torch.from_dlpack(out.as_tensor())
        return torch.from_numpy(np.array(out.as_tensor()))
