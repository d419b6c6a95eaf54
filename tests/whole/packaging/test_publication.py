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

import fula_fast

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


def test_one_version_and_one_name_of_the_authors():
    archive = json.loads((ROOT / ".zenodo.json").read_text("utf-8"))
    (author,) = re.findall(r'^authors:\n  - name: "(.*)"\n(?!  -)', CITATION, re.M)
    assert archive["creators"] == PROJECT["project"]["authors"] == [{"name": author}]
    assert archive["version"] == cited("version") == fula_fast.__version__


def test_a_release_has_its_date_and_what_is_none_has_not():
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1]
    dated = re.findall(r"^date-released: (\S+)$", CITATION, re.M)
    if first.startswith("Unreleased"):
        assert fula_fast.__version__ in first and not dated
    else:
        assert dated and f"{fula_fast.__version__} ({dated[0]})" == first


def test_the_papers_have_one_address_everywhere():
    papers = re.findall(r'^    url: "(.*)"$', CITATION, re.M)
    archive = json.loads((ROOT / ".zenodo.json").read_text("utf-8"))["related_identifiers"]
    related = [each["identifier"].replace("arXiv:", "https://arxiv.org/abs/") for each in archive]
    assert papers == related == list(PROJECT["project"]["urls"].values())
    assert len(papers) == CITATION.count("  - type: article")


def test_what_an_index_shows_leads_nowhere_into_the_tree(monkeypatch):
    backend = pytest.importorskip("scikit_build_core.builder._load_provider")
    monkeypatch.chdir(ROOT)
    monkeypatch.delitem(sys.modules, "description", raising=False)
    found = backend.process_dynamic_metadata(
        PROJECT["project"], PROJECT["tool"]["dynamic-metadata"], "sdist"
    )
    monkeypatch.delitem(sys.modules, "description", raising=False)
    assert found["version"] == fula_fast.__version__
    assert found["readme"]["content-type"] == "text/markdown"
    text, readme = found["readme"]["text"], (ROOT / "README.md").read_text("utf-8")
    assert "](" not in text and "make quickstart` gives" not in text
    assert re.findall(r"^```.*?^```$", text, re.M | re.S) == re.findall(
        r"^```.*?^```$", readme, re.M | re.S
    )
    assert re.findall("^#.*", text, re.M) == re.findall("^#.*", readme, re.M)
    assert "| What is promised | about numbers, and about files |" in text


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
