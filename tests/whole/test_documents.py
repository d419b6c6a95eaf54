"""The documents at the top lead where they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_and_headings(name):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", (ROOT / name).read_text("utf-8"))
    assert links
    for place, heading in links:
        assert (ROOT / place).exists(), place
        text = (ROOT / place).read_text("utf-8") if heading else ""
        slugs = {
            re.sub(r"[^\w]+", "-", line.strip("# \n").lower())
            for line in re.findall(r"^#+ .*", text, re.M)
        }
        assert not heading or heading[1:] in slugs, (place, heading)


def test_the_readme_names_every_page_of_the_guide():
    readme = (ROOT / "README.md").read_text("utf-8")
    pages = {page.name for page in (ROOT / "fula_fast/guide/pages").glob("*.md")}
    assert pages - {"python.md"} == set(
        re.findall(r"^\| \[[^]]*\]\(fula_fast/guide/pages/(\w+\.md)", readme, re.M)
    )
