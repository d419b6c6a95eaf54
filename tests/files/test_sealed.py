"""Sealed files: every damage is noticed and named, and sound ones come back as they were."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typing_extensions import TypedDict

from fula_fast.errors import FulaError
from fula_fast.files import sealed

_spec = importlib.util.spec_from_file_location("damage", Path(__file__).with_name("damage.py"))
damage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(damage)

KIND = sealed.Kind("note", "write it again")
CONTENT = {"epochs": 30, "rate": 0.1, "names": ["a", "ä"], "none": None, "big": 2**70}
TENSORS = {
    "weight": torch.arange(6.0).view(2, 3).t(),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": np.array(3),
    "flags": np.array([True, False]),
    "empty": torch.zeros(0, 2),
}


@pytest.fixture(params=["json", "safetensors"])
def written(request, tmp_path):
    """(a sealed file, a function that reads it)."""
    path = tmp_path / f"file.{request.param}"
    if request.param == "json":
        sealed.write_json(path, KIND, CONTENT)
        return path, lambda: sealed.read_json(path, KIND)
    sealed.write_tensors(path, KIND, TENSORS, CONTENT)
    return path, lambda: sealed.read_tensors(path, KIND)


def test_a_sound_file_comes_back(tmp_path):
    digest = sealed.write_json(tmp_path / "a.json", KIND, CONTENT)
    assert sealed.read_json(tmp_path / "a.json", KIND) == CONTENT
    assert digest == sealed.digest_of(CONTENT) != sealed.digest_of(CONTENT | {"epochs": 31})
    digest = sealed.write_tensors(tmp_path / "a.safetensors", KIND, TENSORS, CONTENT)
    tensors, meta = sealed.read_tensors(tmp_path / "a.safetensors", KIND, digest=digest)
    assert meta == CONTENT == sealed.read_meta(tmp_path / "a.safetensors", KIND)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        expected = torch.as_tensor(TENSORS[name])
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)


def test_tied_tensors_come_back_under_every_name(tmp_path):
    tied = torch.arange(3.0)
    sealed.write_tensors(tmp_path / "a.safetensors", KIND, {"a": tied, "b": tied, "c": tied}, {})
    tensors, _ = sealed.read_tensors(tmp_path / "a.safetensors", KIND)
    assert {name: t.tolist() for name, t in tensors.items()} == dict.fromkeys("abc", [0, 1, 2])


def test_every_bit_counts(written):
    """A flipped bit at any place is noticed, or changes nothing that is read."""
    path, read = written
    sound, whole = path.read_bytes(), repr(read())
    for place in range(len(sound)):
        content = bytearray(sound)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            assert repr(read()) == whole, place
        except FulaError as error:
            assert "\n" not in str(error) and str(path) in str(error)


@pytest.mark.parametrize("harm", [*damage.BYTES, *damage.HEADS], ids=lambda f: f.__name__)
def test_damage_is_named(written, harm):
    path, read = written
    if harm is damage.without_head and path.suffix == ".json":
        pytest.skip("a JSON file has no head apart")
    harm(path)
    expected = FileNotFoundError if harm is damage.removed else FulaError
    with pytest.raises(expected) as caught:
        read()
    if harm is damage.newer:
        assert isinstance(caught.value, sealed.Newer) and "format 99" in str(caught.value)
    elif harm is not damage.removed:
        assert isinstance(caught.value, sealed.Damaged)
        assert str(caught.value).endswith("write it again") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["null", "3", '"x"', "[]", "{}", "NaN", "1" * 5000, "\ud800"])
def test_json_of_another_form(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(sealed.Damaged):
        sealed.read_json(path, KIND)
    head = {"kind": "note", "format": 1, "digest": "", "content": None}
    for key in head:  # each part of the head replaced by that form
        whole = json.dumps(head | {key: "PLACE"}).replace('"PLACE"', text)
        path.write_bytes(whole.encode(errors="surrogatepass"))
        with pytest.raises(FulaError):
            sealed.read_json(path, KIND)


def test_the_kind_and_the_file_itself_are_told_apart(tmp_path):
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    digest = sealed.write_tensors(path, KIND, TENSORS, {})
    sealed.write_tensors(other, KIND, TENSORS, {"more": 1})
    with pytest.raises(sealed.Damaged, match="it is no spec of a run"):
        sealed.read_tensors(path, sealed.RUN_SPEC)
    with pytest.raises(sealed.Damaged, match="another file than the one"):
        sealed.read_tensors(other, KIND, digest=digest)


class Schema(TypedDict):
    epochs: int


@pytest.mark.parametrize("content", [{}, {"epochs": "many"}, {"epochs": None}, [], None])
def test_a_schema_is_checked_behind_the_digest(tmp_path, content):
    sealed.write_json(tmp_path / "a.json", KIND, content)
    with pytest.raises(sealed.Damaged, match="is wrong"):
        sealed.read_json(tmp_path / "a.json", KIND, Schema)


def _tree(folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.npy").write_bytes(b"12345" * 100)
    (folder / "sub/b").write_bytes(b"")


@pytest.mark.parametrize("harm", damage.BYTES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("file", ["a.npy", "seal.json"])
def test_a_damaged_folder_is_noticed(tmp_path, harm, file):
    _tree(tmp_path / "entry")
    sealed.seal_folder(tmp_path / "entry", sealed.CACHE, "kind/key")
    sealed.check_folder(tmp_path / "entry", sealed.CACHE, "kind/key")
    harm(tmp_path / "entry" / file)
    with pytest.raises(sealed.Damaged):
        sealed.check_folder(tmp_path / "entry", sealed.CACHE, "kind/key")


def test_a_folder_is_told_from_another_and_from_a_file(tmp_path):
    _tree(tmp_path / "entry")
    sealed.seal_folder(tmp_path / "entry", sealed.CACHE, "kind/key")
    with pytest.raises(sealed.Damaged, match="it is 'kind/key'"):
        sealed.check_folder(tmp_path / "entry", sealed.CACHE, "kind/other")
    (tmp_path / "entry/new").write_text("x")
    with pytest.raises(sealed.Damaged, match="'new' is missing or new"):
        sealed.check_folder(tmp_path / "entry", sealed.CACHE, "kind/key")
    (tmp_path / "file").write_text("x")
    with pytest.raises(sealed.Damaged):
        sealed.check_folder(tmp_path / "file", sealed.CACHE, "kind/key")


def test_tensors_that_cannot_be_mapped_are_damage(tmp_path, monkeypatch):
    """torch opens the file once more, itself, and raises a RuntimeError where it may not."""
    path = tmp_path / "t.safetensors"
    sealed.write_tensors(path, sealed.STITCHES, {"w": torch.ones(2)}, {})

    def refused(path):
        raise RuntimeError("unable to open file: Permission denied (13)\nmore lines")

    monkeypatch.setattr("safetensors.torch.load_file", refused)
    with pytest.raises(sealed.Damaged, match="unable to open file: Permission denied") as told:
        sealed.read_tensors(path, sealed.STITCHES)
    assert "\n" not in str(told.value)
