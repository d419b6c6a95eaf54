"""Which processes count as there: those that can still write."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time

import pytest

from fula_fast.errors import FulaError
from fula_fast.files.atomic import (
    folder,
    is_alive,
    remove_stale,
    replacing,
    replacing_folder,
    scratch_folder,
)


def _until_ended(pid: int) -> bool:
    deadline = time.time() + 60
    while is_alive(pid) and time.time() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def test_a_process_is_there_until_it_ends():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(child.pid) and is_alive(os.getpid())
    child.communicate(b"\n", timeout=60)
    assert not is_alive(child.pid)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux' /proc")
def test_one_that_ended_and_that_nobody_asked_for_is_not():
    """As a worker is whose starter was killed, in a container whose first process asks for none."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert _until_ended(child.pid)
    os.kill(child.pid, 0)  # its number is still taken
    assert child.wait() == 0


def test_a_number_beyond_all_processes_is_none():
    assert is_alive(2**80)  # no number of this system's: that it is free is not known
    assert not is_alive(2**22 + 7)


def test_a_killed_writer_of_tensors_leaves_nothing_that_is_not_tidied(tmp_path):
    """The library that writes them begins under a name of its own."""
    code = f"""
import os, sys
from pathlib import Path
import safetensors.torch, torch
from fula_fast.files import sealed

def killed(tensors, path, meta):
    (Path(path).parent / ".tmpAbC123").write_bytes(b"half")
    os._exit(9)

safetensors.torch.save_file = killed
sealed.write_tensors(Path({str(tmp_path)!r}) / "t.safetensors", sealed.STITCHES, {{}}, {{}})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert any(tmp_path.rglob(".tmpAbC123"))
    remove_stale(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path):
    place = tmp_path / "deep" / "entry"
    with replacing_folder(place) as made:
        (made / "sub").mkdir()
        (made / "sub/a").write_text("first")
        assert not place.exists()
    with pytest.raises(KeyError), replacing_folder(tmp_path / "other") as made:
        (made / "a").write_text("half")
        raise KeyError
    with replacing_folder(place) as made:  # another process was first
        (made / "b").write_text("second")
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(FulaError, match=r"cannot write '.*file' \(Not a directory\)"),
        replacing_folder(tmp_path / "file"),
    ):
        pass
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"deep", "deep/entry", "deep/entry/sub", "deep/entry/sub/a", "file"}


def test_a_scratch_folder_goes_though_the_system_refuses_once(tmp_path, monkeypatch):
    """A donor is whole by then: nothing would write it, and tidy, again."""
    remove, refused = os.rmdir, []

    def once(*args, **options):
        if not refused:
            refused.append(args)
            raise OSError(errno.EIO, "Input/output error")
        remove(*args, **options)

    monkeypatch.setattr(os, "rmdir", once)
    with scratch_folder(tmp_path / "donor") as scratch:
        (scratch / "half").write_text("x")
    assert refused and not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EIO])
def test_a_network_share_may_flush_no_folders(tmp_path, monkeypatch, code):
    """What else goes wrong there is an error."""
    flush = os.fsync

    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    if code == errno.EIO:
        with pytest.raises(FulaError, match="cannot write .*Input/output error"):
            folder(tmp_path / "a" / "b")
        return
    with replacing(folder(tmp_path / "a" / "b") / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a/b/file").read_text() == "whole"
