"""The guide's pages hold every record, and the site builds without a warning."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fula_fast
from fula_fast.attacks import attacks
from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.guide import make
from fula_fast.guide.parts import PARTS
from fula_fast.guide.plain import body
from fula_fast.measures import Needs, measures
from fula_fast.methods import methods
from fula_fast.models.families import DEFAULTS
from fula_fast.pipelines import source_names
from fula_fast.pipelines.tools import list_sources
from fula_fast.report.glossary import columns, meaning
from fula_fast.reproduce.recipe import recipe_names
from fula_fast.study.protocol import PRESETS
from fula_fast.study.spec_keys import keys, tables


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    folder = make.write_pages(tmp_path_factory.mktemp("guide"))
    return {page.stem: page.read_text(encoding="utf-8") for page in folder.glob("*.md")}


def rows(page: str) -> list[list[str]]:
    """The rows of a page's tables; a `|` within a cell is escaped."""
    lines = (line for line in page.splitlines() if line.startswith("| `"))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_part_is_used_and_none_is_left(pages):
    written = "".join(p.read_text(encoding="utf-8") for p in (make.HOME / "pages").glob("*.md"))
    assert set(re.findall(r"<!-- here: (\w+) -->", written)) == set(PARTS)
    assert not any("<!-- here" in text for text in pages.values())


def test_tables_are_square(pages):
    for name, text in pages.items():
        for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.M):
            assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, (
                name
            )


def test_methods_stand_as_their_records_say(pages):
    wanted = [[f"`{m.name}`", m.stitch, m.reads, m.careful] for m in methods()]
    for page in ("reading", "records"):
        assert all(row in rows(pages[page]) for row in wanted)


def test_records_hold_every_measure_attack_source_and_architecture(pages):
    found = {row[0].partition(":")[0].strip("`"): row for row in rows(pages["records"])}
    for each in measures(*Needs):
        assert found[each.name][2:] == [each.reads, each.careful, each.source]
    for each in attacks():
        assert found[each.name][1:] == [each.reads, each.careful, f"{each.gradients:,}"]
    assert {*source_names(), *DEFAULTS} <= set(found)


def test_the_spec_page_holds_every_key(pages):
    section, held = "", set()
    for line in pages["spec"].splitlines():
        section = line.removeprefix("## ").strip("`[]") if line.startswith("## ") else section
        if line.startswith("| `"):
            held.add(f"{'' if section == 'The top' else section + '.'}{line.split('`')[1]}")
    assert held == {key.path for key in keys()}


def test_the_spec_page_and_the_command_say_the_same_of_every_table(pages):
    sections = dict(
        re.findall(r"^## (?:`\[)?(.*?)(?:\]`)?\n\n(.*?)(?=^## |\Z)", pages["spec"], re.M | re.S)
    )
    assert len(sections) == len(tables())
    row = {
        f"{table}.{cells[0].strip('`')}": cells
        for table, text in sections.items()
        for cells in rows(text)
    }
    row |= {path.removeprefix("The top."): cells for path, cells in row.items()}
    for table in sections.keys() - {"The top"}:
        answer = CliRunner().invoke(commands.app, ["spec", table, "--json"])
        holder, *inside = json.loads(answer.output)
        assert holder["key"] == table.removesuffix(".NAME")
        assert [each["key"].rpartition(".")[2] for each in inside] == [
            cells[0].strip("`") for cells in rows(sections[table])
        ]
        for each in (holder, *inside):
            cells = row[each["key"]]
            limits = f" ({each['range']})" if "range" in each else ""
            assert cells[1] == each["type"] + limits
            assert cells[2].strip("`") == each["default"] and cells[3] == each["meaning"]
            assert cells[4:] in ([], [each.get("acts", "")])


def test_no_record_ends_within_a_sentence(pages):
    """As the first line of a text that wraps would."""
    summaries = [source.summary for source in list_sources()]
    assert [text for text in summaries if not text.endswith(".")] == []
    cut = re.compile(r"(\b(an?|the|of|and|or|to|with|from)|[,(–-])$")
    for name in ("records", "spec", "columns", "reading", "protocols"):
        texts = [cell for row in rows(pages[name]) for cell in row if " " in cell]
        assert texts and [text for text in texts if cut.search(text)] == []


def test_the_python_page_has_every_public_name(pages):
    described = re.findall(r"^## `(?:fula_fast\.)?(\w+)`$", pages["python"], re.M)
    told = re.findall(r"`fula_fast\.(\w+)`", pages["python"].partition("\n## ")[0])
    assert set(fula_fast.__all__) <= {*described, *told}
    assert {*told} == {"FulaError", "__version__"}


def test_presets_and_experiments_are_all_there(pages):
    assert all(f"`{name}`" in pages["protocols"] for name in (*PRESETS, *recipe_names()))
    (epochs,) = [row for row in rows(pages["protocols"]) if row[0] == "`epochs`"]
    assert epochs[1:] == [str(preset.epochs) for preset in PRESETS.values()]


def test_columns_of_a_real_table_are_in_the_glossary(pages):
    assert all(row[1] == meaning(row[0].strip("`")) for row in rows(pages["columns"]))
    assert {"accuracy", "kappa", "front_hash", "end_site", "robust_eps"} <= dict(columns()).keys()


def opened_site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The site that the command has made in the folder and opened in a browser."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    answer = CliRunner().invoke(commands.app, ["guide", "--out", str(folder)])
    assert answer.exit_code == 0, answer.output
    assert opened == [(folder / "site" / "index.html").resolve().as_uri()]
    return folder / "site"


def test_without_mkdocs_a_plain_site_opens_and_its_links_lead_somewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "can_build", lambda: False)
    site = opened_site(tmp_path, monkeypatch)
    html = {page.name: page.read_text(encoding="utf-8") for page in site.glob("*.html")}
    assert {f"{page.stem}.html" for page in (make.HOME / "pages").glob("*.md")} == set(html)
    assert not _fetched(site)
    anchors = {name: set(re.findall(r'id="([^"]+)"', text)) for name, text in html.items()}
    for name, text in html.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            if "://" not in link:
                file, _, anchor = link.partition("#")
                assert not file or (site / file).exists(), (name, link)
                assert not anchor or anchor in anchors[file or name], (name, link)
    assert all(text.count('class="table"') == text.count("<table>") for text in html.values())
    assert "<td><code>schedule</code></td>" in html["spec.html"]


def test_headings_of_the_plain_site_are_named_as_mkdocs_names_them():
    page = body("## A laptop, a GPU\n\n## `[grid]`\n\n## `[grid]`\n\n[there](own.md#x) `code`")
    assert re.findall(r'id="([^"]+)"', page) == ["a-laptop-a-gpu", "grid", "grid_1"]
    assert 'href="own.html#x"' in page


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FulaError, match="file"):
        make.write_pages(tmp_path / "file")


@pytest.fixture
def mkdocs():
    if not make.can_build():
        pytest.skip("mkdocs-material is not installed: pip install 'fula-fast[docs]'")


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(mkdocs, tmp_path, monkeypatch):
    site = opened_site(tmp_path, monkeypatch)
    names = {page.stem for page in (make.HOME / "pages").glob("*.md")}
    assert names <= {page.stem for page in site.glob("*.html")}
    assert not _fetched(site)
    assert "<td><code>schedule</code></td>" in (site / "spec.html").read_text(encoding="utf-8")


def _fetched(site: Path) -> list[str]:
    """Addresses of other machines that a page would load something from."""
    loads = re.compile(
        r"<(?:script|img|link rel=\"(?:stylesheet|icon)\")[^>]*(?:src|href)=\"(https?://[^\"]*)"
    )
    return [url for page in site.glob("*.html") for url in loads.findall(page.read_text())]


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_build(mkdocs, tmp_path, monkeypatch):
    whole = make.filled
    monkeypatch.setattr(make, "filled", lambda text: whole(text).replace("(spec.md)", "(gone.md)"))
    with pytest.raises(FulaError, match="gone.md"):
        make.build(tmp_path)
