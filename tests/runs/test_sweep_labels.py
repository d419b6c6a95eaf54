"""Labels mean the same to the end and to the data, or the run is refused before any cell."""

import numpy as np
import pytest
from PIL import Image

from fula_fast import FulaError, stitch, sweep
from fula_fast.donors.training import evaluate
from fula_fast.models import build
from fula_fast.pipelines import load_source

pytestmark = pytest.mark.usefixtures("without_plots")

ORDER, TURNED = ["cat", "dog", "emu"], ["dog", "emu", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of eight 8x8 images, for training and for test; in `pair` only two of them."""
    root = tmp_path_factory.mktemp("data")
    draw(root / "all", ORDER)
    draw(root / "pair", ORDER[:2])
    return root / "all"


def draw(root, names):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def run(folder, out, run_order, protocol=None, **donors):
    """A sweep over the folder; `donors`: the order that each donor's own data has."""

    def data(order):
        path = folder if len(order) == 3 else folder.with_name("pair")
        options = {"path": str(path), "classes": order}
        return {"source": "imagefolder", "size": 8, "options": options}

    protocol = dict(protocol or {})
    methods = [protocol.pop("method", "hint")]
    tiny = {"model": "resnet18", "width": 2, "epochs": 0, "batch_size": 8}
    return sweep(
        {
            "data": data(run_order),
            "donors": {n: {**tiny, "data": data(order)} for n, order in donors.items()},
            "grid": {"front": "a", "end": "b", "sites": [[3, 5]], "methods": methods},
            "protocol": {"epochs": 1, "batch_size": 8} | protocol,
            "engine": {"precision": "fp32", "device": "cpu"},
        },
        out,
        quiet=True,
        donors=out / "donors",
    )


@pytest.mark.parametrize("method", ["hint", "fula", "dm"])
def test_labels_that_the_end_cannot_give_are_refused_early(folder, tmp_path, method):
    """Whether or not the method trains on labels: every cell's answers are compared with them."""
    with pytest.raises(FulaError, match=r"labels 0 to 2, but end 'b' answers with 2 classes"):
        run(folder, tmp_path, ORDER, {"method": method}, a=ORDER, b=ORDER[:2])
    assert not list(tmp_path.rglob("*.safetensors")), "a donor was trained before"


def test_labels_that_an_attacked_front_cannot_give_are_refused_early(folder, tmp_path):
    robust = {"robust": "pgd-2"}
    with pytest.raises(FulaError, match=r"labels 0 to 2, but front 'a' answers with 2 classes"):
        run(folder, tmp_path, ORDER, robust, a=ORDER[:2], b=ORDER)
    found = run(folder, tmp_path / "unattacked", ORDER, a=ORDER[:2], b=ORDER)
    assert [row["status"] for row in found.rows] == ["ok"]


def test_a_model_is_not_scored_on_labels_that_it_cannot_give(folder):
    source = load_source("imagefolder", size=8, channels=3, path=str(folder), classes=ORDER)
    few = build("resnet18", num_classes=2, input_shape=(3, 8, 8), width=2)
    with pytest.raises(FulaError, match="labels 0 to 2, but model 'resnet18' answers with 2"):
        evaluate(few, source.test)


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
