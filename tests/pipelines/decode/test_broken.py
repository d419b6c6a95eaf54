"""Broken files among many: DALI's decoder crashes the process on some, so each case is a process.

Every case is repeated: the crash depends on which thread meets the broken file.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fula_fast.pipelines.decode.dali import dali_installed

pytestmark = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")

_DECODE = """
import json, sys
import numpy as np
from fula_fast.errors import FulaError
from fula_fast.pipelines.decode.open_decoder import open_decoder
from fula_fast.pipelines.decode.folders import index_splits
from fula_fast.pipelines.decode.trees import open_tree
from pathlib import Path

index, _ = index_splits(open_tree(Path(sys.argv[1])))
found = set()
for _ in range(20):
    try:
        images = open_decoder("dali")(index, range(len(index)), None, 3, sys.argv[2])
        found.add(tuple(index.tree.name(index.samples[i]) for i, x in enumerate(images) if x is None))
    except FulaError as error:
        found.add(str(error))
print(json.dumps(sorted(found)))
"""
_STREAM = """
import json, sys
from pathlib import Path
from fula_fast.errors import FulaError
from fula_fast.pipelines import Augmentation, load_source, open_stream

source = load_source("imagefolder", path=sys.argv[1], size=20, cached=False, decoder="dali",
                     on_error=sys.argv[2])
for name in sys.argv[3:]:
    Path(name).write_bytes(b"broken since")
found = set()
for _ in range(3):
    stream = open_stream(source.train, batch_size=48, seed=0, augmentation=Augmentation(),
                         backend="dali")
    for epoch in range(4):
        try:
            count = sum(len(batch.index) for batch in stream.epoch(epoch))
            found.add(f"{count} of {len(source.train)}, skipped {len(source.train.skipped)}")
        except FulaError as error:
            found.add(str(error))
print(json.dumps(sorted(found)))
"""


def _encoded(rng, kind: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(out, kind, **options)
    return out.getvalue()


def _broken(rng) -> dict[str, bytes]:
    jpeg, png = _encoded(rng, "JPEG"), _encoded(rng, "PNG")
    return {
        "cut.jpg": jpeg[: len(jpeg) // 2],  # within the image
        "head.jpg": jpeg[:100],  # within the tables before it
        "half.png": png[: len(png) // 2],
        "flipped.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "text.jpg": b"<html>not found</html>",
    }


def _folder(root: Path, broken: list[str], kinds: tuple[str, ...] = ("JPEG", "PNG")) -> Path:
    """192 small images of two classes, the `broken` ones among those of the first."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("test", 1)):
        for label in ("a", "b"):
            place = root / split / label
            place.mkdir(parents=True)
            for i in range(count):
                kind = kinds[i % len(kinds)]
                (place / f"{i:03}.{kind.lower()}").write_bytes(_encoded(rng, kind))
    for i, name in enumerate(broken):
        (root / "train" / "a" / f"{20 * i + 10:03}-{name}").write_bytes(_broken(rng)[name])
    return root


def _run(script: str, *arguments: object) -> list:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-400:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "broken, kinds",
    [
        ("cut.jpg", ("JPEG", "PNG")),
        ("head.jpg", ("JPEG", "PNG")),
        ("half.png", ("JPEG", "PNG")),
        ("flipped.png", ("JPEG", "PNG")),
        ("text.jpg", ("JPEG", "PNG")),
        ("head.jpg", ("JPEG",)),
        ("half.png", ("PNG",)),
    ],
)
@pytest.mark.slow
def test_a_broken_file_is_named(tmp_path, broken, kinds):
    folder = _folder(tmp_path, [broken], kinds)
    (message,) = _run(_DECODE, folder, "raise")
    assert f"train/a/010-{broken}' cannot be read" in message and "on_error" in message


@pytest.mark.parametrize("kinds", [("JPEG", "PNG"), ("JPEG",)], ids="-".join)
def test_broken_files_are_skipped(tmp_path, kinds):
    names = list(_broken(np.random.default_rng(0)))
    (skipped,) = _run(_DECODE, _folder(tmp_path, names, kinds), "skip")
    assert skipped == [f"train/a/{20 * i + 10:03}-{name}" for i, name in enumerate(names)]


@pytest.mark.slow
def test_sound_files_that_dali_rejects_are_read(tmp_path, without_checksum):
    folder = _folder(tmp_path, [])
    for i in range(1, 96, 10):
        without_checksum(folder / f"train/a/{i:03}.png")
    assert _run(_DECODE, folder, "raise") == [[]]  # nothing raised, nothing left out


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FULA_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_stream_from_files_names_a_broken_one(tmp_path, own_cache):
    folder = _folder(tmp_path / "data", ["text.jpg", "half.png", "cut.jpg"])
    messages = _run(_STREAM, folder, "raise")
    assert messages and all("cannot be read" in m and "train/a/" in m for m in messages)


def test_a_stream_from_files_goes_on_without_the_broken_ones(tmp_path, own_cache):
    folder = _folder(tmp_path / "data", ["text.jpg", "half.png", "cut.jpg"])
    assert _run(_STREAM, folder, "skip") == ["192 of 192, skipped 3"]


@pytest.mark.slow
def test_a_file_broken_since_is_named(tmp_path, own_cache):
    folder = _folder(tmp_path / "data", [])
    messages = _run(_STREAM, folder, "skip", folder / "train/b/033.png")
    assert len(messages) == 1 and "train/b/033.png' cannot be read" in messages[0]
