"""Sealed columns: every damage is noticed, and a part is read without the rest."""

import numpy as np
import pytest
from pyarrow import parquet

from fula_fast.files import sealed_rows
from fula_fast.files.sealed import Damaged, Kind

KIND = Kind("list", "write it again")


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_rows, "GROUP", 4)
    monkeypatch.setattr(sealed_rows, "_KEPT", 2)
    draw = np.random.default_rng(0)
    columns = {
        "id": np.array([f"{v:016x}" for v in draw.integers(0, 2**62, 10)], "S16"),
        "count": draw.integers(0, 9, 10).astype(np.int32),
        "name": ["a", "", "ccc", *"defghij"],
    }
    path = tmp_path / "rows.parquet"
    return path, sealed_rows.write_rows(path, columns), columns


def read(path, seal):
    return sealed_rows.SealedRows(path, KIND, seal)


@pytest.mark.parametrize("span", [(0, 10), (0, 1), (3, 5), (4, 8), (9, 10), (5, 5), (10, 10)])
def test_rows_come_back(written, span):
    path, seal, columns = written
    rows = read(path, seal)
    assert len(rows) == 10 and rows(*span)["id"].dtype == "S16"
    for name, column in columns.items():
        texts = [v.decode() if isinstance(v, bytes) else v for v in rows(*span)[name].tolist()]
        expected = np.asarray(column)[slice(*span)].tolist()
        assert texts == [v.decode() if isinstance(v, bytes) else v for v in expected]


def test_whole_columns_and_other_readers(written):
    path, seal, columns = written
    table = read(path, seal).all_of("count", "name")
    assert table.to_pydict() == {"count": columns["count"].tolist(), "name": columns["name"]}
    assert parquet.read_table(path).num_rows == 10


def test_no_rows(tmp_path):
    path = tmp_path / "rows.parquet"
    seal = sealed_rows.write_rows(path, {"id": np.empty(0, "S16"), "count": np.empty(0, int)})
    found = read(path, seal)
    assert len(found) == 0 and found.all_of("id").num_rows == 0
    assert {name: len(column) for name, column in found(0, 0).items()} == {"id": 0, "count": 0}


def test_every_bit_counts(written):
    path, seal, _ = written
    sound = path.read_bytes()
    for place in range(len(sound)):
        path.write_bytes(
            sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :]
        )
        with pytest.raises(Damaged, match="does not match its digest"):
            read(path, seal).all_of("count")


@pytest.mark.parametrize("harm", ["cut", "longer", "emptied", "removed", "folder"])
def test_another_length_or_no_file(written, harm):
    path, seal, _ = written
    sound = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "removed":
        path.write_bytes({"cut": sound[:-9], "longer": sound + b"x", "emptied": b""}[harm])
    with pytest.raises(Damaged, match=r"list '.*rows\.parquet' is damaged: .*write it again"):
        read(path, seal)


def test_other_groups_are_not_read(written):
    path, seal, columns = written
    content = bytearray(path.read_bytes())
    content[seal["ends"][0] - 1] ^= 1
    path.write_bytes(content)
    assert read(path, seal)(4, 8)["count"].tolist() == columns["count"][4:8].tolist()
    with pytest.raises(Damaged):
        read(path, seal)(3, 5)


def test_a_seal_of_another_form(written):
    path, seal, _ = written
    with pytest.raises(Damaged, match="its seal is of another form"):
        read(path, seal | {"digests": seal["digests"][:-1]})


def test_a_file_that_goes_away_while_it_is_read(written, monkeypatch):
    path, seal, _ = written
    found = read(path, seal)
    monkeypatch.setattr(found, "_verified", lambda group: path.unlink())
    with pytest.raises(Damaged, match=r"list '.*rows\.parquet' is damaged: it cannot be read"):
        found(0, 1)
