"""Every block of code on the guide's pages runs as it stands, page by page, at smoke size.

A TOML block with a title is written to that file, with the study's sizes replaced by tiny ones; one
without is a part of a study, which is checked with the least that it lacks; a Python block runs in
the page's own namespace (one with a title is a module of that name); each line of a shell block is
run. What a test machine lacks is replaced: see `_smaller`.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.guide import make
from fula_fast.study.spec import Spec, load_spec, parse_table
from fula_fast.study.toml import apply_overrides

tomli_w = pytest.importorskip("tomli_w")

ROOT = Path(__file__).parents[2]
PAGES = sorted((make.HOME / "pages").glob("*.md"))
FENCE = re.compile(r"^```(\w+)(?: title=\"(.*?)\")?\n(.*?)^```$", re.M | re.S)
TINY = (
    "data.size=8", "data.train_images=200", "data.test_images=50",
    *(f"donors.{donor}.{size}" for donor in "ab" for size in ("width=4", "epochs=1", "min_accuracy=0")),
    "grid.sites=[[3, 3]]", "grid.seeds=[0]", "protocol.epochs=1", "protocol.batch_size=50",
)  # fmt: skip
KINDS = {"sh", "python", "toml", "text"}


class Block(NamedTuple):
    kind: str
    title: str
    code: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def test_every_fence_is_of_a_kind_that_is_tested():
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.M)
        assert len(fences) == 2 * len(blocks(page)), page
        assert {block.kind for block in blocks(page)} <= KINDS, page


@pytest.mark.usefixtures("without_plots", "forgotten")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_the_pages_code_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if block.kind == "toml":
            _write_toml(block)
        elif block.title:
            Path(block.title).write_text(block.code)
        elif block.kind == "python":
            exec(compile(block.code, str(page), "exec"), names)
        elif block.kind == "sh":
            for line in block.code.splitlines():
                _run(line, capsys)


def _write_toml(block: Block) -> None:
    table = tomllib.loads(block.code)
    if not block.title:
        _check_part(table)
    else:
        tiny = [text for text in TINY if text.partition(".")[0] in {"protocol", *table}]
        Path(block.title).write_text(tomli_w.dumps(apply_overrides(table, tiny)))


def _check_part(table: dict) -> None:
    """Every key and value of it; the libraries of pretrained models are not asked."""
    if "project" in table:
        return
    donors = table.get("donors", {"a": {"model": "resnet18"}, "b": {"model": "resnet18"}})
    grid = {"front": [*donors][0], "end": [*donors][-1], "methods": ["fula"]}
    whole = {"data": {"source": "digits"}, **table, "donors": donors}
    parse_table(Spec, whole | {"grid": grid | table.get("grid", {})}, "").protocols()


@pytest.mark.parametrize("wrong", ["widht = 4", "width = 0", "stem = 'stok'"])
def test_a_part_of_a_study_is_checked(wrong):
    with pytest.raises(FulaError, match=r"\[donors\.a\]"):
        _check_part(tomllib.loads(f"[donors.a]\nmodel = 'resnet18'\n{wrong}"))


def test_the_readmes_study_is_one():
    studies = [block for block in blocks(ROOT / "README.md") if block.kind == "toml"]
    assert studies
    for block in studies:
        load_spec(tomllib.loads(block.code))


def _run(line: str, capsys) -> None:
    words = _smaller(shlex.split(line, comments=True))
    if not words:
        return
    if words[0] == "fula-fast":
        with pytest.raises(SystemExit) as leaving:
            commands.app(words[1:], prog_name="fula-fast")
        assert not leaving.value.code, (line, capsys.readouterr().err)
    else:
        assert words[:2] == ["pip", "install"], f"no test knows how to run: {line}"
        assert words[2:] == ["."]


def _smaller(words: list[str]) -> list[str]:
    """The command on two cores: tiny sizes, the CPU, and plans alone of what needs a cluster."""
    if words[1:3] == ["sweep", "quickstart"]:
        words += [part for text in TINY for part in ("--set", text)]
    if {"--engine", "--workers"} & set(words) and "--dry-run" not in words:
        words.append("--dry-run")
    return ["cpu" if word.startswith("cuda") else word for word in words]


def test_what_is_installed_is_the_checkout_until_something_is_published():
    notebooks = sorted((make.HOME / "notebooks").glob("*.ipynb"))
    for page in (ROOT / "README.md", *PAGES, *notebooks):
        for line in page.read_text(encoding="utf-8").splitlines():
            named = re.findall(r"pip install (?:--quiet )?'?([^\s'`]+)", line)
            assert "published" in line or all(n.startswith(".") for n in named), (page, line)


def test_extras_that_pages_name_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {
        extra
        for page in PAGES
        for extra in re.findall(r"(?:fula-fast|'\.)\[(\w+)\]", page.read_text(encoding="utf-8"))
    }
    assert named and named <= set(extras)


@pytest.fixture
def forgotten(monkeypatch):
    """What a page registers is gone afterwards, and with it its module."""
    from fula_fast.attacks import names as attacks
    from fula_fast.measures import registry as measures
    from fula_fast.methods import registry as methods
    from fula_fast.pipelines.sources import registry as sources

    measures.measures(), sources.sources()
    kept = {attacks: "_ATTACKS", measures: "_MEASURES", methods: "_METHODS", sources: "_SOURCES"}
    for module, records in kept.items():
        monkeypatch.setattr(module, records, dict(getattr(module, records)))
    yield
    sys.modules.pop("my_package", None)
