"""The guide's pages as plain HTML: what opens in a browser where mkdocs is not installed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.util import ClassNotFound

from ..report.page import template
from .gallery import FOLDER

_ENTRY = re.compile(r"^  - (.+): (\w+)\.md$", re.M)
"""A page of `mkdocs.yml`: its title and name, in the order of the navigation."""
_CODE = HtmlFormatter(nowrap=True)


def site(pages: Path, settings: Path, folder: Path) -> Path:
    """Write the Markdown `pages` as HTML into `folder`, in the order of mkdocs' `settings`, with
    their pictures; returns the first page."""
    entries = _ENTRY.findall(settings.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    page, code = template("plain.html.j2", "fula_fast.guide"), _CODE.get_style_defs("pre")
    for title, name in entries:
        text = (pages / f"{name}.md").read_text("utf-8")
        html = page.render(title=title, pages=entries, body=body(text), code=code)
        (folder / f"{name}.html").write_text(html, "utf-8")
    shutil.copytree(pages / FOLDER, folder / FOLDER, dirs_exist_ok=True)
    return folder / f"{entries[0][1]}.html"


def body(text: str) -> str:
    """A page's Markdown as HTML: headings have anchors, links lead to the other pages' HTML."""
    parser = MarkdownIt("commonmark", {"highlight": _highlighted}).enable("table")
    tokens = parser.parse(text)
    seen: dict[str, int] = {}
    for token, inline in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open":
            token.attrSet("id", _anchor("".join(c.content for c in inline.children or ()), seen))
    html = parser.renderer.render(tokens, parser.options, {})
    html = re.sub(r'(<a href="\w+)\.md(?=[#"])', r"\1.html", html)
    return html.replace("<table>", '<div class="table"><table>').replace(
        "</table>", "</table></div>"
    )


def _anchor(heading: str, seen: dict[str, int]) -> str:
    """As mkdocs names it, so that one link serves both sites."""
    plain = re.sub(r"[^\w\s-]", "", heading.encode("ascii", "ignore").decode()).strip().lower()
    name = re.sub(r"[-\s]+", "-", plain)
    count = seen[name] = seen.get(name, -1) + 1
    return f"{name}_{count}" if count else name


def _highlighted(code: str, language: str, _: str) -> str:
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(code, lexer, _CODE)
