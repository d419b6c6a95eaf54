"""One sweep from JPEG files under each stream: the same donors, rows and stitches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fula_fast import sweep
from fula_fast.pipelines import load_source

pytest.importorskip("nvidia.dali")

pytestmark = pytest.mark.usefixtures("without_plots")

STREAMS = ["reference", "resident", "dali"]
TIMES = {"train_seconds"}


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """Handwritten digits as JPEG class folders, each image of a size of its own."""
    folder, source = tmp_path_factory.mktemp("jpegs"), load_source("digits")
    for split, images, count in (("train", source.train, 256), ("val", source.test, 64)):
        for i in range(count):
            name = folder / split / f"digit-{images.labels[i]}" / f"{i:03}.jpg"
            name.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(np.asarray(images.images[i]))
            picture.resize((16 + i % 3, 16 + i % 5)).save(name, quality=92)
    return folder


def run(jpegs, folder, stream: str, engine=None, **options):
    """A donor trained by the stream, two stitches of it by the wave engine, with a marker."""
    engine = engine or {"precision": "fp32", "device": "cpu"}
    donor = {"model": "resnet18", "width": 4, "epochs": 1, "batch_size": 64}
    return sweep(
        {
            "data": {
                "source": "imagefolder", "data_dir": str(jpegs), "size": 16, "stream": stream,
                "options": options,
            },
            "donors": {"a": donor, "b": {**donor, "seed": 1, "shortcut": "pixel+class"}},
            "grid": {
                "front": "a", "end": "b", "sites": [[3, 5]], "methods": ["dm", "fula", "tlm"],
                "shortcut": ["none", "aruco+random"],
            },
            "protocol": {"epochs": 2, "batch_size": 64, "dm_samples": 40},
            "evaluation": {"sets": ["clean", "rolled"], "measures": ["linear_cka"]},
            "engine": engine,
        },
        folder / "run", quiet=True, donors=folder / "donors",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(jpegs, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FULA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {s: run(jpegs, tmp_path_factory.mktemp(s), s) for s in STREAMS} | {
            f"{s}, from files": run(jpegs, tmp_path_factory.mktemp(s), s, cached=False)
            for s in ("reference", "dali")
        }


def rows(results) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in results.rows]


def assert_same(ours, theirs) -> None:
    assert [r["cell"] for r in ours.rows] == [r["cell"] for r in theirs.rows]
    assert rows(ours) == rows(theirs)  # donors' hashes among them
    for row in ours.rows:
        stitch = theirs.stitch(row["cell"])
        for name, tensor in ours.stitch(row["cell"]).items():
            assert torch.equal(tensor, stitch[name])


@pytest.mark.slow
def test_every_stream_gives_the_same_table_and_stitches(runs):
    assert len(runs["dali"].rows) == 6 and not runs["dali"].failed
    assert len({row["accuracy"] for row in runs["dali"].rows}) > 1
    for stream in ("reference", "resident"):
        assert_same(runs["dali"], runs[stream])


@pytest.mark.slow
def test_images_that_stay_files_give_the_same_by_either_stream(runs):
    assert not runs["dali, from files"].failed
    assert_same(runs["dali, from files"], runs["reference, from files"])


@pytest.mark.slow
def test_decoding_once_or_in_the_stream_changes_no_number(runs):
    """Cells of other options have other ids; all that was measured is equal."""
    measured = [
        [{k: v for k, v in row.items() if k != "cell"} for row in rows(runs[name])]
        for name in ("dali, from files", "dali")
    ]
    for row in (*measured[0], *measured[1]):
        for name in ("front_hash", "end_hash"):
            assert row[name]
    assert measured[0] == measured[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_sweep_fed_by_dali_equals_the_resident_one(jpegs, tmp_path, precision):
    engine = {"precision": precision, "device": "cuda", "mode": "captured"}
    ours, theirs, files = (
        run(jpegs, tmp_path / name, stream, engine, **options)
        for name, stream, options in (
            ("ours", "dali", {}), ("theirs", "resident", {}), ("files", "dali", {"cached": False})
        )
    )  # fmt: skip
    assert len(ours.rows) == 6 and not (ours.failed or files.failed)
    trained = {row["engine_mode"] for row in ours.rows if row["method"] != "dm"}
    assert trained == {"captured"}
    assert_same(ours, theirs)
    assert [row["accuracy"] for row in rows(files)] == [row["accuracy"] for row in rows(ours)]
