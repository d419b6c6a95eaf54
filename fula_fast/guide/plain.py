"""The guide's pages as plain HTML: what opens in a browser where mkdocs is not installed."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.util import ClassNotFound

_ENTRY = re.compile(r"^  - (.+): (\w+)\.md$", re.M)
"""A page of `mkdocs.yml`: its title and name, in the order of the navigation."""
_CODE = HtmlFormatter(nowrap=True)
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title - fula_fast</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light; }
body { display: flex; gap: 2rem; max-width: 78rem; margin: 0 auto; padding: 1rem;
  font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; }
nav { flex: 0 0 14rem; font-size: 0.9rem; }
nav a { display: block; padding: 0.15rem 0.5rem; color: #333; text-decoration: none; }
nav a.here { background: #eef; font-weight: 600; }
main { min-width: 0; flex: 1; }
a { color: #3949ab; }
pre { overflow-x: auto; padding: 0.7rem; background: #f6f6f8; font-size: 0.85rem; }
code { font-size: 0.88em; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
td, th { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; }
td { vertical-align: top; }
td code { white-space: nowrap; }
img { max-width: 100%; }
a[href^="#"] > img { width: 23%; height: 7rem; object-fit: contain; }
@media (max-width: 50rem) { body { display: block; } }
$code</style></head>
<body><nav>$nav</nav><main>$body</main></body></html>
""")


def site(pages: Path, settings: Path, folder: Path) -> Path:
    """Write the Markdown `pages` as HTML into `folder`, in the order of mkdocs' `settings`, with
    their pictures; returns the first page."""
    entries = _ENTRY.findall(settings.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for title, name in entries:
        text = (pages / f"{name}.md").read_text("utf-8")
        nav = "".join(
            f'<a href="{other}.html"{" class=here" * (other == name)}>{escape(shown)}</a>'
            for shown, other in entries
        )
        code = _CODE.get_style_defs("pre")
        html = _PAGE.substitute(title=escape(title), nav=nav, body=body(text), code=code)
        (folder / f"{name}.html").write_text(html, "utf-8")
    for picture in pages.glob("*/*"):
        copy = folder / picture.relative_to(pages)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(picture.read_bytes())
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
