"""`fula-fast doctor` names everything a bug report needs."""

import platform
import subprocess
import sys
from importlib.metadata import version

from fula_fast.cli import doctor


def test_every_section_has_findings():
    found = doctor.report()
    assert list(found) == ["versions", "machine", "operators", "defaults"]
    assert all(found.values())
    assert all(finding for lines in found.values() for _, finding in lines)


def test_versions_are_the_installed_ones():
    found = dict(doctor.report()["versions"])
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert {"triton", "torchvision", "DALI", "C++ compiler"} <= set(found)


def test_the_convolutions_that_are_avoided_are_named(monkeypatch):
    assert "16 channels" in dict(doctor.report()["machine"])["narrow strided convolutions"]
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert "without oneDNN" in doctor._convolutions()


def test_what_is_missing_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = dict(doctor._versions())
    assert "fula-fast[dali]" in found["DALI"] and "install g++" in found["C++ compiler"]


def test_the_command_exits_0():
    answer = subprocess.run(
        [sys.executable, "-m", "fula_fast", "doctor"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    for word in ("torch", "processor", "AVX-512", "AMX", "GPU", "operators", "precision"):
        assert word in answer.stdout
