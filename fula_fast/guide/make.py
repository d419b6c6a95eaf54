"""The guide, made: pages in Markdown with their figures, and a site of them that works offline.

    python -m fula_fast.guide.make OUT     the pages in OUT/pages, and the site in OUT/site

With mkdocs-material a link that leads nowhere fails the build, and `FULA_GUIDE_SEARCH=true` adds a
search, for a site that a server gives out; without it the site is plain.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import FulaError
from ..files.atomic import replacing
from ..files.paths import user_path
from .gallery import FOLDER, illustrated
from .parts import PARTS
from .plain import site

HOME = Path(__file__).parent
_HERE = re.compile(r"^<!-- here: (\w+) -->$", re.M)


def filled(text: str) -> str:
    """A page with every part that it asks for."""
    return _HERE.sub(lambda found: PARTS[found[1]](), text)


def write_pages(folder: Path) -> Path:
    """Write every page, and the site's settings beside them; returns the pages' folder.

    Raises `FulaError` where the folder cannot be written.
    """
    for file in (HOME / "mkdocs.yml", *sorted((HOME / "pages").iterdir())):
        text, pictures = illustrated(filled(file.read_text(encoding="utf-8")))
        _write(folder / file.relative_to(HOME), text.encode())
        for name, content in pictures.items():
            _write(folder / "pages" / FOLDER / name, content)
    return folder / "pages"


def _write(file: Path, content: bytes) -> None:
    with replacing(file) as part:
        part.write_bytes(content)


def can_build() -> bool:
    """Whether mkdocs and its theme are installed."""
    return all(find_spec(name) is not None for name in ("mkdocs", "material"))


def build(folder: Path) -> Path:
    """Write the pages and build the site; returns its first page. Plain without mkdocs.

    Raises `FulaError` with what mkdocs says where it warns of anything.
    """
    pages = write_pages(folder)
    if not can_build():
        return site(pages, folder / "mkdocs.yml", folder / "site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    files = [
        "--config-file",
        str(folder / "mkdocs.yml"),
        "--site-dir",
        str(folder.resolve() / "site"),
    ]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FulaError(f"mkdocs refused the guide: {done.stdout}{done.stderr}")
    return folder / "site" / "index.html"


if __name__ == "__main__":
    out = user_path(sys.argv[1])
    print(build(out))
