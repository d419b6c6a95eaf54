"""The report says what each donor takes."""

from fula_fast.report.inputs import inputs_in_words
from fula_fast.study.spec import load_spec

MOMENTS = {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7]}


def test_every_donor_in_words():
    large = {"size": 24, "resize": 28, "interpolation": "bicubic", "mean": 0.5, "std": 0.25}
    donors = {
        "a": {"input": large},
        "b": {"input": {"size": 24, "crop": "none"}},
        "c": {"data": {"source": "digits", **MOMENTS}},
        "d": {},
    }
    spec = load_spec(
        {
            "donors": {name: {"model": "resnet18", **more} for name, more in donors.items()},
            "grid": {"front": "a", "end": "b", "methods": "dm"},
        }
    )
    assert inputs_in_words(spec.dump()) == {
        "a": "24 pixels from the middle of 28, bicubic; mean [0.5], std [0.25]",
        "b": "24 pixels, bilinear",
        "c": "images as [data] gives them; mean [0.2, 0.3, 0.4], std [0.5, 0.6, 0.7]",
        "d": "images as [data] gives them",
    }
