"""A spec in other forms than plain UTF-8 TOML: marks and encodings, NumPy's values, paths, seeds."""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np
import pytest
import torch

from fula_fast.errors import FulaError
from fula_fast.study.spec import load_spec
from fula_fast.study.toml import read_toml

TEXT = 'name = "é"\n[donors.a]\nmodel = "resnet18"\n[grid]\nfront = "a"\nend = "a"\n'


def test_a_byte_order_mark_is_no_part_of_a_spec(tmp_path):
    file = tmp_path / "s.toml"
    file.write_bytes(codecs.BOM_UTF8 + TEXT.encode())
    assert load_spec(file).name == "é"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "is not UTF-8 text but UTF-16, UTF-32 or binary; save it as UTF-8"),
        (
            TEXT.encode("utf-16-le"),
            "is not UTF-8 text but UTF-16, UTF-32 or binary; save it as UTF-8",
        ),
        (
            TEXT.encode("utf-32-be"),
            "is not UTF-8 text but UTF-16, UTF-32 or binary; save it as UTF-8",
        ),
        (TEXT.encode("latin-1"), r"s.toml:1 is not UTF-8 text \(byte 0xe9\); save it as UTF-8"),
        (TEXT[10:].encode() + b"# \xff\n", r"s.toml:7 is not UTF-8 text \(byte 0xff\)"),
    ],
)
def test_other_encodings_are_named_with_the_cure(tmp_path, content, message):
    (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(FulaError, match=message):
        read_toml(tmp_path / "s.toml")


def tables(**grid):
    donors = {name: {"model": "resnet18", "width": 4} for name in "ab"}
    return {"donors": donors, "grid": {"front": "a", "end": "b", **grid}}


FORMS = [
    ({"seeds": range(3)}, {"seeds": [0, 1, 2]}),
    ({"seeds": np.arange(2), "alpha": np.array([0.0, 0.5])}, {"seeds": [0, 1], "alpha": [0, 0.5]}),
    ({"seeds": np.int64(5), "alpha": np.float32(0.5)}, {"seeds": [5], "alpha": [0.5]}),
    ({"seeds": torch.arange(2), "subset": {3, 2}}, {"seeds": [0, 1], "subset": [2, 3]}),
    ({"sites": np.array([[1, 2], [3, 4]])}, {"sites": [[1, 2], [3, 4]]}),
    ({"sites": [np.int32(3), (np.uint8(1), "stem")]}, {"sites": [3, [1, "stem"]]}),
    ({"axes": {"bn": np.array(["train", "eval"])}}, {"axes": {"bn": ["train", "eval"]}}),
]


@pytest.mark.parametrize(("given", "plain"), FORMS, ids=[str(k) for k in range(len(FORMS))])
def test_values_of_numpy_and_torch_are_plain_values(given, plain):
    found, expected = load_spec(tables(**given)), load_spec(tables(**plain))
    assert found == expected and load_spec(found.dump()) == expected


def test_paths_and_scalars_in_every_table():
    found = load_spec(
        {
            **tables(),
            "data": {"source": "npz", "options": {"path": Path("a/b.npz")}, "size": np.int64(8)},
            "protocol": {"epochs": np.int16(2), "flip": np.bool_(False)},
        },
        {"donors.a.checkpoint": Path("c.safetensors"), "protocol.lr": np.float64(0.1)},
    )
    assert found.data.options == {"path": "a/b.npz"} and found.data.size == 8
    assert found.donors["a"].checkpoint == "c.safetensors"
    assert found.base_protocol.epochs == 2 and found.base_protocol.lr == 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": [2**63]}, r"seeds\[0\] = 9223372036854775808: should be less than 9223"),
        ({"seeds": 10**40}, r"seeds\[0\] = 1000"),
        ({"data_seeds": np.array([2**64 - 1], np.uint64)}, r"data_seeds\[0\] = 18446744073709551615"),
        ({"seeds": object()}, "grid.seeds is a object; a spec holds numbers, texts, lists"),
        ({"axes": {"lr": [lambda: 1]}}, "grid.axes.lr is a function; a spec holds"),
        ({"axes": {"target_bn": ["eval", None]}}, "axes.target_bn holds None, which TOML cannot"),
        ({"front": "caf\udce9"}, r"grid.front = 'caf\\udce9' is not UTF-8 text"),
    ],
)  # fmt: skip
def test_what_is_no_plain_value_is_named(given, message):
    with pytest.raises(FulaError, match=message):
        load_spec(tables(**given))


def test_a_key_of_another_encoding_is_named():
    with pytest.raises(FulaError, match=r"key 'caf\\udce9' is not UTF-8 text"):
        load_spec(tables(), {"donors.caf\udce9.model": "resnet18"})


@pytest.mark.parametrize("key", ["donors.a.seed", "donors.a.shortcut.seed"])
def test_seeds_of_donors_are_64_bit_too(key):
    marker = {"donors.a.shortcut": {"pattern": "pixel", "location": "class"}}
    with pytest.raises(FulaError, match="seed = 1000.* should be less than"):
        load_spec(tables(), {**marker, key: 10**30})
    assert load_spec(tables(), {**marker, key: 2**63 - 1})
