"""File trees: folders and archives give the same names and bytes; broken archives are named."""

from __future__ import annotations

import gzip
import io
import tarfile

import numpy as np
import pytest

from fula_fast.errors import FulaError
from fula_fast.pipelines.decode import trees
from fula_fast.pipelines.decode.trees import open_tree

FILES = {
    "train/a/1.png": b"one",
    "train/a/2.png": b"two",
    "train/b-c/ü.png": b"three",
    "train/b/deep/x.png": b"four",
    "notes.txt": b"",
}


def _write_folder(folder, files=FILES):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _write_archive(path, files=None, mode="w:gz", prefix=""):
    with tarfile.open(path, mode) as tar:
        for name, content in FILES.items() if files is None else files:
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _content(tree) -> dict[str, bytes]:
    return {tree.name(i): tree.read(i).tobytes() for i in range(len(tree.names))}


def test_a_folder_and_its_archives_hold_the_same(tmp_path):
    folder = open_tree(_write_folder(tmp_path / "data"))
    assert _content(folder) == FILES
    assert sorted(folder.names.tolist()) == folder.names.tolist()
    for mode, suffix in (
        ("w", "tar"),
        ("w:gz", "tar.gz"),
        ("w:xz", "tar.xz"),
        ("w:bz2", "tar.bz2"),
    ):
        for prefix in ("", "./"):
            tree = open_tree(_write_archive(tmp_path / f"a.{suffix}", None, mode, prefix))
            assert _content(tree) == FILES and tree.folders == folder.folders
            assert [tree.size(i) for i in range(5)] == [folder.size(i) for i in range(5)]


def test_hidden_files_are_left_out(tmp_path):
    files = {"a/.DS_Store": b"x", ".cache/b.png": b"x", "a/b.png": b"y"}
    assert _content(open_tree(_write_folder(tmp_path / "data", files))) == {"a/b.png": b"y"}


def test_nothing_is_written_outside_the_cache(tmp_path):
    files = [("../../escape.png", b"x"), ("/absolute.png", b"y"), ("a/b.png", b"z")]
    tree = open_tree(_write_archive(tmp_path / "evil.tar.gz", files))
    assert not list(tmp_path.rglob("escape.png")) and _content(tree)["a/b.png"] == b"z"


def test_a_name_that_comes_twice_is_refused(tmp_path):
    path = _write_archive(tmp_path / "a.tar.gz", [("a/1.png", b"x"), ("./a/1.png", b"y")])
    with pytest.raises(FulaError, match="holds 'a/1.png' twice"):
        open_tree(path)


def test_broken_archives_are_named(tmp_path):
    whole = _write_archive(tmp_path / "a.tar.gz", [("a/1.png", bytes(range(256)) * 4000)])
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "page.tar.xz").write_bytes(b"<html>")
    for name in ("cut.tar.gz", "page.tar.xz"):
        with pytest.raises(FulaError, match=f"archive '.*{name}' cannot be unpacked"):
            open_tree(tmp_path / name)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(FulaError, match="a.zip' is no folder and no archive"):
        open_tree(tmp_path / "a.zip")
    with pytest.raises(FulaError, match="nowhere' is missing"):
        open_tree(tmp_path / "nowhere")


def _header(name: str, size: int, form: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, form
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_header("notes.txt", 1 << 60) + bytes(2048), "it ends within a file"),  # was skipped for years
        (_header("long", 1 << 30, tarfile.GNUTYPE_LONGNAME) + bytes(20 << 20), "header in it is huge"),
        (_header("train/a/0.png", 1 << 40) + bytes(2048), "holds 'train/a/0.png' of 1099511627776 bytes"),
    ],
    ids=["file", "name", "image"],
)  # fmt: skip
def test_sizes_that_headers_claim_are_not_believed(tmp_path, content, reason):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(content, 1))
    assert path.stat().st_size < 200_000
    with pytest.raises(FulaError, match=reason):
        open_tree(path)


def test_keys_follow_content(tmp_path):
    first, again = (open_tree(_write_folder(tmp_path / d)) for d in ("x", "y"))
    every = np.arange(5)
    assert first.key(every) == again.key(every) != first.key(every[:3])
    (tmp_path / "y" / "train" / "a" / "1.png").write_bytes(b"eno")
    assert open_tree(tmp_path / "y").key(every) != first.key(every)


def test_many_names_are_memory_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "_MAPPED_BYTES", 0)
    tree = open_tree(_write_folder(tmp_path / "data"))
    assert isinstance(tree.names, np.memmap) and _content(tree) == FILES


def _linked(path, members):
    """An archive of (name, content), or (name, kind, target) for a link."""
    with tarfile.open(path, "w") as tar:
        for name, *rest in members:
            info = tarfile.TarInfo(name)
            if len(rest) == 1:
                info.size = len(rest[0])
                tar.addfile(info, io.BytesIO(rest[0]))
            else:
                info.type, info.linkname = rest
                tar.addfile(info)
    return path


def test_links_of_an_archive_are_the_files_they_lead_to(tmp_path):
    """Hard and symbolic, before and behind their target, to a link, to a folder."""
    tree = open_tree(
        _linked(
            tmp_path / "a.tar",
            [
                ("train/a/0.png", tarfile.SYMTYPE, "1.png"),
                ("train/a/1.png", b"one"),
                ("train/a/2.png", tarfile.LNKTYPE, "train/a/1.png"),
                ("train/a/3.png", tarfile.SYMTYPE, "../../store/x"),
                ("train/a/4.png", tarfile.SYMTYPE, "3.png"),
                ("store/x", b"kept"),
                ("train/b", tarfile.SYMTYPE, "a"),
            ],
        )
    )
    of_a = {"0.png": b"one", "1.png": b"one", "2.png": b"one", "3.png": b"kept", "4.png": b"kept"}
    both = {f"train/{c}/{name}": content for c in "ab" for name, content in of_a.items()}
    assert _content(tree) == both | {"store/x": b"kept"}
    assert "train/b" in tree.folders and tree.left_out == ()


def test_links_to_nothing_are_named(tmp_path):
    tree = open_tree(
        _linked(
            tmp_path / "a.tar",
            [
                ("train/a/1.png", b"one"),
                ("train/a/gone.png", tarfile.SYMTYPE, "nowhere.png"),
                ("train/a/out.png", tarfile.SYMTYPE, "/etc/passwd"),
                ("train/a/p.png", tarfile.SYMTYPE, "q.png"),
                ("train/a/q.png", tarfile.SYMTYPE, "p.png"),
                ("train/a/self", tarfile.SYMTYPE, "../a"),
                ("train/a/pipe", tarfile.FIFOTYPE, ""),
            ],
        )
    )
    assert _content(tree) == {"train/a/1.png": b"one"}
    names = ("gone.png", "out.png", "p.png", "pipe", "q.png", "self")
    assert tree.left_out == tuple(f"train/a/{n}" for n in names)
