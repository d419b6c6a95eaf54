"""Where the files of each source are looked for, and whether they are there.

Names alone are compared: no archive is opened, nothing is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .by_name import data_folder
from .registry import named_source


@dataclass(frozen=True)
class Place:
    """`looked_for`: in words. `found`: the file or folder; None where there is none. `needs_files`:
    False for a source that is made up, or comes with a library."""

    looked_for: str
    found: Path | None = None
    needs_files: bool = True

    @property
    def there(self) -> bool:
        """Whether the source can be loaded here as it is."""
        return self.found is not None or not self.needs_files


def place_of(name: str, data_dir: str | Path | None = None) -> Place:
    """The place of a source's files in the data folder (see `sources.data_folder`).

    Raises `FulaError` for an unknown name.
    """
    source = named_source(name)
    if source.find is None:
        return Place(source.looked_for, needs_files=False)
    return Place(source.looked_for, source.find(data_folder(data_dir)))
