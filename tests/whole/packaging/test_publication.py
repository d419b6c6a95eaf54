"""What the project says of itself when it is published says the same everywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CITATION = (ROOT / "CITATION.cff").read_text("utf-8")
WORKFLOW = (ROOT / ".github/workflows/release.yml").read_text("utf-8")


def cited(key: str) -> str:
    (found,) = re.findall(rf'^{key}: "?([^"\n]*)"?$', CITATION, re.M)
    return found


def test_one_title_one_licence_one_list_of_keywords():
    archive = json.loads((ROOT / ".zenodo.json").read_text("utf-8"))
    assert archive["title"] == cited("title")
    assert archive["license"] == cited("license") == PROJECT["project"]["license"]
    assert archive["keywords"] == PROJECT["project"]["keywords"]
    assert cited("keywords") == f"[{', '.join(archive['keywords'])}]"
    abstract = " ".join(re.findall(r"^abstract: >-\n((?:  .*\n)+)", CITATION, re.M)[0].split())
    assert archive["description"] == abstract


def test_every_platform_has_its_wheels():
    systems = re.search(r"os: \[(.*)\]", WORKFLOW)[1].split(", ")
    assert {name.partition("-")[0] for name in systems} == {"ubuntu", "macos", "windows"}
    assert any(name.endswith("-arm") for name in systems)
    assert "id-token: write" in WORKFLOW and "password" not in WORKFLOW


@pytest.mark.slow
@pytest.mark.skipif(find_spec("cibuildwheel") is None, reason="cibuildwheel is not installed")
@pytest.mark.parametrize(
    "platform, arch, ends",
    [
        ("linux", "x86_64", "manylinux_x86_64"), ("linux", "aarch64", "manylinux_aarch64"),
        ("macos", "arm64", "macosx_arm64"), ("windows", "AMD64", "win_amd64"),
    ],
)  # fmt: skip
def test_the_builder_reads_the_configuration(platform, arch, ends):
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    done = subprocess.run(
        [*command, "--platform", platform, "--archs", arch, str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    named = done.stdout.split()
    least = PROJECT["project"]["requires-python"].removeprefix(">=3.")
    assert [n for n in named if n.startswith(f"cp3{least}-")] and all(
        n.endswith(ends) for n in named
    )
