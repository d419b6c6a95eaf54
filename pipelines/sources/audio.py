"""Audio as images: wav files to log-mel spectrograms, cached like decoded images."""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...errors import FulaError
from ..decode.decoder import Pixels
from ..decode.folders import FolderIndex
from ..decode.images import with_channels
from ..decode.trees import FileTree

WAV = (".wav",)
_RANGE_DB = 80.0
MOST_RATE = 768_000
"""Hz of a clip: four times that of the finest recordings."""


@dataclass(frozen=True)
class SpectrogramDecoder:
    """`decode.Decoder` of wav files: `size` mel bands (low at the bottom) by `size` frames.

    Clips are mixed to mono, resampled to `rate` Hz, cut or padded with silence to `duration`
    seconds; levels are decibels below the clip's loudest cell, 80 dB over the 256 gray values.
    """

    rate: int
    duration: float

    @property
    def name(self) -> str:
        return f"logmel-{self.rate}-{self.duration}"

    def __call__(
        self,
        index: FolderIndex,
        samples: Sequence[int],
        size: int | None,
        channels: int,
        on_error: str = "raise",
    ) -> Pixels:
        return [self._decode(index, i, size, channels, on_error) for i in samples]

    def _decode(
        self, index: FolderIndex, i: int, size: int, channels: int, on_error: str
    ) -> np.ndarray | None:
        try:
            signal = self._signal(index.read(i))
        except (OSError, ValueError, EOFError) as error:
            if on_error == "skip":
                return None
            raise FulaError(
                f"audio '{index.where(i)}' cannot be read ({error}); repair or remove it, or set "
                "on_error = 'skip'"
            ) from error
        image = log_mel(signal, self.rate, size)
        return with_channels(image[None, ..., None], channels)[0]

    def _signal(self, encoded: np.ndarray) -> np.ndarray:
        """Mono float64 at `rate`, exactly `duration` seconds."""
        from scipy.io import wavfile
        from scipy.signal import resample_poly

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # unknown chunks are harmless
            rate, data = _parsed(wavfile.read, encoded)
        if not MOST_RATE >= rate >= 1:
            raise ValueError(f"a rate of {rate} Hz; 1 to {MOST_RATE} are read")
        signal = _floats(data[: math.ceil(self.duration * rate) + rate])
        if not len(signal):
            raise ValueError("no samples")
        if not np.isfinite(signal).all():
            raise ValueError("samples that are no numbers")
        if rate != self.rate:
            common = int(np.gcd(rate, self.rate))
            signal = resample_poly(signal, self.rate // common, rate // common)
        length = round(self.duration * self.rate)
        return np.pad(signal[:length], (0, max(0, length - len(signal))))


def _parsed(read: Callable[..., tuple[int, np.ndarray]], encoded: np.ndarray) -> tuple:
    """What scipy makes of a file; a damaged header may raise anything there."""
    try:
        return read(io.BytesIO(encoded))
    except (
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        MemoryError,
        struct.error,
    ) as e:
        raise ValueError(f"its header is damaged: {e}") from e
    except UnboundLocalError as error:
        raise ValueError("it holds no samples") from error


def _floats(data: np.ndarray) -> np.ndarray:
    """Mono float64 from any wav sample format; the level does not matter, the zero does."""
    signal = data.astype(np.float64) - (128 if data.dtype == np.uint8 else 0)
    return signal if signal.ndim == 1 else signal.mean(axis=1)


def log_mel(signal: np.ndarray, rate: int, size: int) -> np.ndarray:
    """uint8 (size, size) log-mel spectrogram of a mono signal; see `SpectrogramDecoder`."""
    window = 2 ** round(np.log2(0.064 * rate))  # about 64 ms
    starts = np.linspace(0, len(signal), size, endpoint=False).astype(int)
    padded = np.pad(signal, (window // 2, window))  # frames are centred on their starts
    frames = padded[starts[:, None] + np.arange(window)] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    mel = np.einsum("bf,tf->bt", mel_filters(size, window, rate), power)  # no BLAS: same bits
    level = 10 * np.log10(np.maximum(mel, 1e-30))
    level = np.clip(level - level.max(), -_RANGE_DB, 0) / _RANGE_DB + 1
    silent = not power.any()
    return (
        np.zeros((size, size), np.uint8) if silent else np.rint(level * 255).astype(np.uint8)[::-1]
    )


@lru_cache(maxsize=4)
def mel_filters(bands: int, window: int, rate: int) -> np.ndarray:
    """Triangular filters, evenly spaced in mel = 2595·log10(1 + f/700): (bands, window//2 + 1)."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    step = rate / window
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    # a band narrower than a bin would see none: no side is shorter than one bin
    rising, falling = np.maximum(centre - left, step), np.maximum(right - centre, step)
    frequency = np.arange(window // 2 + 1) * step
    up, down = 1 - (centre - frequency) / rising, 1 - (frequency - centre) / falling
    return np.clip(np.minimum(up, down), 0, None)


def index_flat(tree: FileTree, test_below: int) -> tuple[FolderIndex, FolderIndex]:
    """`<class>_…_<number>.wav` files: numbers under `test_below` are the test split.

    Raises `FulaError` where there are none.
    """
    stems = {i: tree.name(i).rsplit("/", 1)[-1][:-4].split("_") for i in _wav_places(tree)}
    parts = {i: s for i, s in stems.items() if len(s) > 1 and s[-1].isdigit()}
    if not parts:
        raise FulaError(
            f"'{tree.root}' has neither train/<class>/ folders nor <class>_…_<number>.wav files; "
            "point at data that has"
        )
    classes = tuple(sorted({s[0] for s in parts.values()}))
    split = {i: int(s[-1]) < test_below for i, s in parts.items()}
    return tuple(
        _flat_split(tree, {i: s[0] for i, s in parts.items() if split[i] is test}, classes)
        for test in (False, True)
    )


def _wav_places(tree: FileTree) -> list[int]:
    return [i for i, name in enumerate(tree.names.tolist()) if name.lower().endswith(b".wav")]


def _flat_split(tree: FileTree, named: dict[int, str], classes: tuple[str, ...]) -> FolderIndex:
    order = sorted(named, key=lambda i: (named[i], i))
    labels = np.array([classes.index(named[i]) for i in order], dtype=np.int64)
    missing = sorted(set(classes) - set(named.values()))
    if missing:
        raise FulaError(
            f"class '{missing[0]}' of '{tree.root}' lies in one split only; set test_below so that "
            "every class has training and test files"
        )
    return FolderIndex(tree, np.array(order, dtype=np.int64), labels, classes)
