"""Small tables of finished runs that ship with the guide, read by `recorded`.

    python -m fula_fast.guide.recorded FOLDER [NAME ...]     runs them again below an empty folder

`recorded.toml` says which command makes each of them, and which of its columns are kept.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import bench
from ..bench.harness.record import environment
from ..bench.harness.speed import where
from ..errors import FulaError, nearest
from ..files.atomic import replacing
from ..files.paths import user_path

HOME = Path(__file__).parent
TABLES = HOME / "tables"
MEASURED = Path(bench.__file__).parent / "results"
_ABOUT = b"about"
_SCALES = {
    "smoke": "smoke scale: shows the form, not a finding",
    "quickstart": "one pair of narrow networks on handwritten digits: an example, not a finding",
    "measured": "a measurement",
}


@dataclass(frozen=True)
class Recorded:
    """`rows`: one dictionary each. `about`: the `command` that made them, its `hardware`,
    `versions`, `commit`, `time` (UTC) and `scale`."""

    rows: tuple[dict[str, Any], ...]
    about: Mapping[str, Any]

    def __str__(self) -> str:
        """What made it, in a sentence of Markdown."""
        about = self.about
        scale = _SCALES[about.get("scale", "measured")]
        version = about["versions"]["fula_fast"]
        place = f"{where(about)}, fula_fast {version}, {about['time'][:10]}"
        return f"Made by `{about['command']}` ({scale}; {place})."


def recorded(name: str) -> Recorded:
    """A table that ships with the guide, or the recorded figures of a benchmark (`grid-cpu`).

    Raises `FulaError` where there is none of that name.
    """
    from pyarrow import parquet

    tables = {path.stem: path for path in TABLES.glob("*.parquet")}
    reports = {path.stem: path for path in MEASURED.glob("*.json")}
    if name in tables:
        found = parquet.read_table(tables[name])
        return Recorded(tuple(found.to_pylist()), json.loads(found.schema.metadata[_ABOUT]))
    if name in reports:
        report = json.loads(reports[name].read_text("utf-8"))
        return Recorded(tuple(report.pop("rows", ())), report)
    raise FulaError(f"no table '{name}' is recorded{nearest(name, [*tables, *reports])}")


def recipes() -> dict[str, dict[str, Any]]:
    """Of every recorded table: `command`, `scale`, the `table` that the command writes, below the
    folder in which it runs, and the `columns` that are kept."""
    return tomllib.loads((HOME / "recorded.toml").read_text("utf-8"))


def make(folder: Path, names: Iterable[str] = ()) -> list[Path]:
    """Run the commands of some tables, or of all, in `folder`, and keep what they wrote.

    Raises `FulaError` for a command that fails, or that leaves no such table.
    """
    chosen = {name: recipes()[name] for name in names or recipes()}
    folder.mkdir(parents=True, exist_ok=True)
    for command in dict.fromkeys(each["command"] for each in chosen.values()):
        words = [sys.executable, "-m", "fula_fast", *shlex.split(command)[1:]]
        if subprocess.run(words, cwd=folder, check=False).returncode:
            raise FulaError(f"{command} failed")
    return [_keep(name, recipe, folder / recipe["table"]) for name, recipe in chosen.items()]


def _keep(name: str, recipe: Mapping[str, Any], written: Path) -> Path:
    from pyarrow import parquet

    if not written.exists():
        raise FulaError(f"{recipe['command']} wrote no '{written}'")
    about = environment("cpu", recipe["command"]) | {"scale": recipe["scale"]}
    found = parquet.read_table(written, columns=recipe["columns"])
    found = found.replace_schema_metadata({_ABOUT: json.dumps(about)})
    path = TABLES / f"{name}.parquet"
    with replacing(path) as part:
        parquet.write_table(found, part, compression="zstd")
    return path


if __name__ == "__main__":
    print(*make(user_path(sys.argv[1]), sys.argv[2:]), sep="\n")
