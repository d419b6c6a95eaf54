"""Spectrograms: tones land in their bands, wav formats agree, the spoken digits load."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import wavfile

from fula_fast.errors import FulaError
from fula_fast.pipelines import load_source
from fula_fast.pipelines.sources.audio import log_mel, mel_filters

RATE = 8000


def _tone(frequency: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def _mel(frequency: float) -> float:
    return 2595 * np.log10(1 + frequency / 700)


@pytest.mark.parametrize("frequency", [300, 1000, 2500, 3500])
def test_a_tone_is_a_line_at_its_mel_height(frequency):
    image = log_mel(_tone(frequency), RATE, 64)
    band = 63 - image[:, 32].argmax()  # low frequencies at the bottom
    expected = _mel(frequency) / _mel(RATE / 2) * 65 - 1
    assert abs(band - expected) <= 1
    assert image[:, 32].max() >= 250 and np.median(image[:, 32]) < 100


def test_time_runs_to_the_right():
    signal = np.concatenate([np.zeros(RATE // 2), _tone(1000, 0.5)])
    image = log_mel(signal, RATE, 64)
    assert image[:, :28].max() == 0 and image[:, 40:60].max() > 240


def test_filters_are_triangles_that_cover_every_band():
    filters = mel_filters(40, 512, RATE)
    assert filters.shape == (40, 257) and filters.min() == 0 and filters.max() <= 1
    assert (filters.sum(1) > 0).all()
    peaks = filters.argmax(1)
    assert (np.diff(peaks) >= 0).all()


def test_silence_is_black():
    assert not log_mel(np.zeros(RATE), RATE, 16).any()


@pytest.fixture
def folder(tmp_path):
    """Two classes of tones, flat names, numbers 0 … 7, in several wav formats."""
    rng = np.random.default_rng(0)
    for name, frequency in (("low", 400), ("high", 2000)):
        for i in range(8):
            tone = _tone(frequency, 0.6) + 0.01 * rng.normal(size=4800)
            wavfile.write(
                tmp_path / f"{name}_speaker_{i}.wav", RATE, (tone * 9000).astype(np.int16)
            )
    return tmp_path


def test_flat_names_split_by_number(folder):
    source = load_source("audiofolder", path=str(folder), size=32, test_below=3)
    assert source.classes == ("high", "low") and source.image_shape == (3, 32, 32)
    assert np.bincount(source.train.labels).tolist() == [5, 5]
    assert np.bincount(source.test.labels).tolist() == [3, 3]
    height = source.test.images[..., 0].mean(2).argmax(1)
    assert (height[source.test.labels == 0] < height[source.test.labels == 1]).all()


def test_wav_formats_and_rates_give_the_same_picture(tmp_path):
    tone = _tone(900, 1.0, 16000) * 0.4
    stereo = np.stack([tone, tone], 1)
    formats = {
        "int16": (16000, (tone * 32767).astype(np.int16)),
        "float": (16000, tone.astype(np.float32)),
        "uint8": (16000, (tone * 127 + 128).astype(np.uint8)),
        "stereo": (16000, (stereo * 32767).astype(np.int16)),
        "slow": (8000, (_tone(900) * 0.4).astype(np.float32)),
    }
    for name, (rate, data) in formats.items():
        for i in (0, 9):
            wavfile.write(tmp_path / f"{name}_{i}.wav", rate, data)
    source = load_source("audiofolder", path=str(tmp_path), size=32, channels=1)
    pictures = source.train.images[:, :, 4:28, 0].astype(int)
    strong = pictures[0] > 180
    assert strong.any() and np.abs(pictures - pictures[0])[:, strong].max() <= 12


def test_class_folders_of_wav_load_too(tmp_path):
    for split in ("train", "test"):
        for name, frequency in (("a", 500), ("b", 1500)):
            (tmp_path / split / name).mkdir(parents=True)
            wavfile.write(tmp_path / split / name / "x.wav", RATE, _tone(frequency))
    source = load_source("audiofolder", path=str(tmp_path))
    assert source.classes == ("a", "b") and source.image_shape == (3, 64, 64)


def test_mistakes_are_named(folder, tmp_path):
    (folder / "low_speaker_7.wav").write_bytes(b"RIFF no sound")
    with pytest.raises(FulaError, match="audio '.*low_speaker_7.wav' cannot be read"):
        load_source("audiofolder", path=str(folder))
    skipped = load_source("audiofolder", path=str(folder), on_error="skip")
    assert len(skipped.train) == 5 and len(skipped.train.skipped) == 1
    with pytest.raises(FulaError, match="set test_below"):
        load_source("audiofolder", path=str(folder), test_below=0)
    with pytest.raises(FulaError, match="give a rate of at least 1000 Hz"):
        load_source("audiofolder", path=str(folder), rate=10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FulaError, match="neither train/<class>/ folders nor"):
        load_source("audiofolder", path=str(tmp_path / "empty"))


def test_spoken_digits(data_folder):
    source = load_source(
        "audiofolder", path=str(data_folder / "fsdd-wav.tar.xz"), size=32, channels=1
    )
    assert source.classes == tuple("0123456789")
    assert np.bincount(source.train.labels).tolist() == [270] * 10
    assert np.bincount(source.test.labels).tolist() == [30] * 10
    train, test = (
        s.images.reshape(len(s), -1).astype(np.float32) for s in (source.train, source.test)
    )
    distance = (train**2).sum(1) - 2 * test @ train.T
    nearest = source.train.labels[distance.argmin(1)]
    assert (nearest == source.test.labels).mean() > 0.75  # chance is 0.1
