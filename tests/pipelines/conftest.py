"""Small folders of images."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_folder(tmp_path):
    """`make_folder({"train/cat": 3, ...})`: class folders of smooth random 20x24 PNG images."""

    def make(counts: dict[str, int], name: str = "data") -> Path:
        rng = np.random.default_rng(0)
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True)
            for i in range(count):
                small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
                large = small.resize((24, 20), Image.Resampling.BICUBIC)
                large.save(tmp_path / name / folder / f"{i:03}.png")
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def without_checksum():
    """`path` of a PNG, whose compressed data has lost its checksum: Pillow reads it, and DALI, by
    libpng, does not."""

    def rewrite(path: Path) -> Path:
        file = path.read_bytes()
        name = file.index(b"IDAT")
        end = name + 4 + int.from_bytes(file[name - 4 : name])
        chunk = file[name : end - 4]
        length, crc = len(chunk) - 4, zlib.crc32(chunk)
        path.write_bytes(
            file[: name - 4] + length.to_bytes(4) + chunk + crc.to_bytes(4) + file[end + 4 :]
        )
        return path

    return rewrite
