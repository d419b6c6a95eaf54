"""A source's own normalisation reaches donors, stitches and tests, unless the spec sets another."""

import numpy as np
import pytest

from fula_fast import FulaError, stitch, sweep
from fula_fast.models import load_checkpoint
from fula_fast.pipelines import load_source

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with an mnist.npz: a few of scikit-learn's digits, in MNIST's size."""
    folder, source = tmp_path_factory.mktemp("mnist"), load_source("digits", size=28, channels=1)
    arrays = {}
    for name, images, count in (("train", source.train, 200), ("test", source.test, 60)):
        arrays |= {f"{name}_x": images.images[:count, ..., 0], f"{name}_y": images.labels[:count]}
    np.savez(folder / "mnist.npz", **arrays)
    return folder


def spec(digits, data=None, grid=None, **protocol) -> dict:
    table = {"source": "colour-mnist", "data_dir": str(digits), "options": {"variant": "digit"}}
    donor = {"model": "resnet18", "width": 2, "stem": "stock", "epochs": 1, "batch_size": 50}
    usual = {"front": "a", "end": "b", "sites": [[3, 5]], "methods": ["dm", "tlm"]}
    return {
        "data": table | (data or {}),
        "donors": {"a": donor, "b": {**donor, "seed": 1}},
        "grid": usual | (grid or {}),
        "protocol": {"epochs": 1, "batch_size": 50, "dm_samples": 50} | protocol,
        "engine": {"precision": "fp32", "device": "cpu"},
    }


def numbers(rows) -> list[tuple]:
    kept = ("accuracy", "agreement_soft", "term_stitch", "front_accuracy", "front_hash", "end_hash")
    return [tuple(row[k] for k in kept) for row in rows]


def test_a_sweep_takes_the_sources_own(digits, tmp_path):
    def run(name, **data):
        return sweep(spec(digits, data), tmp_path / name, quiet=True, donors=tmp_path / "donors")

    own, given, none = (
        run(name, **data)
        for name, data in (
            ("own", {}), ("given", {"mean": 0.5, "std": 0.5}), ("none", {"mean": 0, "std": 1}),
        )
    )  # fmt: skip
    assert numbers(own.rows) == numbers(given.rows)
    for ours, theirs in zip(numbers(own.rows), numbers(none.rows), strict=True):
        assert ours[-2:] != theirs[-2:]  # other donors: they are trained on other numbers
    assert len(list((tmp_path / "donors").glob("*.safetensors"))) == 4


def test_the_sweep_and_the_single_stitch_agree(digits, tmp_path):
    asked = spec(digits, grid={"methods": ["tlm"]}) | {
        "engine": {"executor": "solo", "device": "cpu"}
    }
    found = sweep(asked, tmp_path / "run", quiet=True, donors=tmp_path / "donors")
    by_hash = {load_checkpoint(p): p for p in (tmp_path / "donors").glob("*.safetensors")}
    from fula_fast.models import content_hash

    donors = {content_hash(staged): staged for staged in by_hash}
    (row,) = found.rows
    source = load_source("colour-mnist", data_dir=digits, variant="digit")
    one = stitch(
        donors[row["front_hash"]], donors[row["end_hash"]], 3, 5, source, "tlm",
        epochs=1, batch_size=50, dm_samples=50, device="cpu",
    )  # fmt: skip
    assert one.accuracy == row["accuracy"] and one.term_stitch == pytest.approx(row["term_stitch"])


@pytest.mark.parametrize(
    "grid, protocol, words",
    [
        ({"alpha": [0.0, 1.0]}, {}, "alpha = 1.0 attacks pixels"),
        ({}, {"robust": "pgd-2"}, "robust = 'pgd-2' attacks pixels"),
    ],
)
def test_attacks_on_normalised_images_are_refused_before_anything_runs(
    digits, tmp_path, grid, protocol, words
):
    with pytest.raises(FulaError, match=words):
        sweep(spec(digits, grid=grid, **protocol), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
