"""Labels mean the same to the end and to the data, or the run is refused before any cell."""

import numpy as np
import pytest
from PIL import Image

from fula_fast import FulaError, stitch, sweep
from fula_fast.pipelines import load_source

pytestmark = pytest.mark.usefixtures("without_plots")

ORDER, TURNED = ["cat", "dog", "emu"], ["dog", "emu", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of eight 8x8 images, for training and for test."""
    root, rng = tmp_path_factory.mktemp("animals"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ORDER:
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def run(folder, out, run_order, protocol=None, **donors):
    """A sweep over the folder; `donors`: the order that each donor's own data has."""

    def data(order):
        options = {"path": str(folder), "classes": order}
        return {"source": "imagefolder", "size": 8, "options": options}

    tiny = {"model": "resnet18", "width": 2, "epochs": 0, "batch_size": 8}
    return sweep(
        {
            "data": data(run_order),
            "donors": {n: {**tiny, "data": data(order)} for n, order in donors.items()},
            "grid": {"front": "a", "end": "b", "sites": [[3, 5]], "methods": ["hint"]},
            "protocol": {"epochs": 1, "batch_size": 8} | (protocol or {}),
            "engine": {"precision": "fp32", "device": "cpu"},
        },
        out,
        quiet=True,
        donors=out / "donors",
    )


def test_an_end_of_another_order_is_refused(folder, tmp_path):
    with pytest.raises(FulaError, match=r"class 'cat' has label 2 in \[donors.b.data\] and 0 in"):
        run(folder, tmp_path, ORDER, a=ORDER, b=TURNED)


def test_a_front_has_no_labels_to_be_wrong_about(folder, tmp_path):
    found = run(folder, tmp_path, ORDER, a=TURNED, b=ORDER)
    assert [row["status"] for row in found.rows] == ["ok"]


def test_a_front_is_attacked_with_labels_of_its_own(folder, tmp_path):
    """Its robust accuracy is an end point of the plot."""
    with pytest.raises(FulaError, match=r"class 'cat' has label 2 in \[donors.a.data\] and 0 in"):
        run(folder, tmp_path, ORDER, {"robust": "pgd-1"}, a=TURNED, b=ORDER)


def test_a_single_stitch_checks_its_end_too(folder, tmp_path):
    run(folder, tmp_path, TURNED, a=TURNED, b=TURNED)
    (donor,) = (tmp_path / "donors").glob("resnet18*.safetensors")
    data = load_source("imagefolder", size=8, path=str(folder), classes=ORDER)
    with pytest.raises(FulaError, match="class 'cat' has label 2 in end 'resnet18' and 0 in"):
        stitch(donor, donor, 3, 5, data, method="hint")
