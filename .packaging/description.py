"""What a package index shows: the README without what leads into the tree, which is not there.

scikit-build-core asks for it as a provider of `[[tool.dynamic-metadata]]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LINKS = re.compile(r"(!?)\[([^]]*)\]\((?!https?:)[^)]*\)")
_CAPTION = re.compile(r"(?<=\n\n)\*[^*]+\*\n\n")


def description(readme: str) -> str:
    """The README's text: without pictures and captions, links into the tree as words."""
    text = _LINKS.sub(lambda found: "" if found[1] else found[2], readme)
    return re.sub(r"\n{3,}", "\n\n", _CAPTION.sub("", text))


def dynamic_metadata(_settings: Mapping[str, Any], _project: Mapping[str, Any]) -> dict[str, Any]:
    """The project's `readme`; a build runs where `pyproject.toml` lies."""
    text = description(Path("README.md").read_text("utf-8"))
    return {"readme": {"content-type": "text/markdown", "text": text}}
