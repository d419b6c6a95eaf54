"""Figures of a page: what a block of its code drew stands where the page asks for it.

A line `<!-- figure: NAME -->` above a block of Python becomes the picture of what the block calls
`drawn`, a figure of matplotlib or the path of a picture, with a sentence on the tables that the
block reads; `<!-- overview -->` becomes all of them, small, each a link to its heading. The blocks
of a page run in order, in one namespace, in the report's style.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..report.style import look
from .recorded import recorded

_BLOCK = re.compile(r"^(?:<!-- figure: ([\w-]+) -->\n\n)?```python\n(.*?)^```$", re.M | re.S)
_READ = re.compile(r'recorded\("([\w-]+)"\)')
_OVERVIEW = "<!-- overview -->"
FOLDER = "gallery"
"""Of the pictures, beside the pages."""


@dataclass(frozen=True)
class Drawn:
    """`picture`: what the block `code` drew. `name`: of its file."""

    name: str
    code: str
    picture: Figure | Path

    def file(self) -> tuple[str, bytes]:
        """Name and content: SVG, or the picture as it is."""
        if isinstance(self.picture, Path):
            return f"{self.name}{self.picture.suffix}", self.picture.read_bytes()
        content = BytesIO()
        with look():
            self.picture.savefig(content, format="svg", metadata={"Date": None})
        return f"{self.name}.svg", content.getvalue()

    def tables(self) -> list[str]:
        """Names of the recorded tables that the code reads."""
        return _READ.findall(self.code)


def figures(text: str) -> Iterator[Drawn]:
    """The figures of a page, whose blocks of Python run; what they raise is raised."""
    names: dict[str, Any] = {"__name__": "page"}
    for name, code in _BLOCK.findall(text):
        with look():
            exec(compile(code, f"figure {name}", "exec"), names)
        if name:
            yield Drawn(name, code, names["drawn"])


@cache
def illustrated(text: str) -> tuple[str, dict[str, bytes]]:
    """A page with its figures, and their files by name. A page without any is not run."""
    if "<!-- figure: " not in text:
        return text, {}
    files, overview, page = {}, [], text
    for drawn in figures(text):
        file, files[file] = drawn.file()
        picture = f"![{drawn.name.replace('-', ' ')}]({FOLDER}/{file})"
        made = "".join(f"\n\n*{recorded(table)}*" for table in drawn.tables())
        page = page.replace(_asked(drawn.name), f"{picture}{made}")
        overview.append(f"[{picture}](#{_heading(text, drawn.name)})")
    return page.replace(_OVERVIEW, "\n".join(overview)), files


def _asked(name: str) -> str:
    return f"<!-- figure: {name} -->"


def _heading(text: str, name: str) -> str:
    """The anchor of the last heading above a figure."""
    title = re.findall(r"^## (.*)$", text.partition(_asked(name))[0], re.M)[-1]
    return re.sub(r"\W+", "-", title.lower()).strip("-")
