"""What a sweep gives back to Python: its table, and where it lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FulaError, nearest
from .store import Store
from .store.similarity_table import SIMILARITY_COLUMNS, matrix_of, similarity_rows
from .store.tables import table

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import pyarrow
    from torch import Tensor, nn

    from .models import Staged
    from .pipelines import Normalisation


def load(folder: str | Path, models: Mapping[str, Staged] | None = None) -> Results:
    """The results of a run from its folder alone: rows, spec, stitches and models.

    `models`: donors of your own by name, which the folder cannot keep. Raises `FulaError` where
    there is no run.
    """
    store = Store.open(folder)
    rows = store.table().to_pylist()
    return Results(Path(folder), tuple(rows), len(store.planned), dict(models or {}))


def behind(moments: Normalisation | None, model: nn.Module) -> nn.Module:
    """The model with its normalisation in front: it takes images in [0, 1] either way."""
    from .models import Normalised

    return model if moments is None else Normalised(model, moments.mean, moments.std).eval()


def html_table(heads: Sequence[str], rows: Iterable[Sequence[Any]], more: str = "") -> str:
    """A table for a notebook; numbers with four digits, `more` in words below."""

    def cell(value: Any, kind: str = "td") -> str:
        shown = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
        return f"<{kind}>{escape(shown)}</{kind}>"

    lines = ["".join(cell(head, "th") for head in heads), *("".join(map(cell, r)) for r in rows)]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{body}</table>{f'<p>{escape(more)}</p>' if more else ''}"


def _data_frame(found: pyarrow.Table) -> pandas.DataFrame:
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise FulaError(
            "pandas is not installed; pip install pandas, or use rows or to_arrow()"
        ) from None
    return found.to_pandas()


_SHOWN_COLUMNS = ("front", "end", "front_site", "end_site", "method", "seed", "status", "accuracy",
                  "agreement_soft", "kappa", "term_stitch")  # fmt: skip
_SHOWN_ROWS = 20
_SITES = {"front_site": "front", "end_site": "end"}
"""Columns of a site, with that of its donor."""


@dataclass(frozen=True)
class Results:
    """A finished sweep: its table, and where it lies.

    `rows`: one dictionary per cell, in the order of the plan, all with the same columns; failed
    cells have `status` "failed", and say why in `error`. `folder`: the run's folder. `cells`: how
    many were planned. `models`: donors of the caller's own, by name.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    cells: int
    models: Mapping[str, Staged] = field(default_factory=dict, repr=False, compare=False)

    @property
    def spec(self) -> dict[str, Any]:
        """The run's spec with every default, as it is stored."""
        return Store.open(self.folder).spec

    @property
    def failed(self) -> tuple[dict[str, Any], ...]:
        """Rows of the cells that failed."""
        return tuple(row for row in self.rows if row["status"] == "failed")

    @property
    def report(self) -> Path:
        """The run's report, one HTML page."""
        return self.folder / "report.html"

    @property
    def similarity(self) -> Similarities:
        """What the spec's `[similarity]` table asked for; empty where it has none."""
        return similarities(self.folder)

    def select(self, **columns: Any) -> list[dict[str, Any]]:
        """The rows whose columns have these values: `select(method="fula", end_site=3)`.

        A site may be named as `fula-fast sites` prints it: `front_site="layer1.0"`, in each row
        that of its own donor. Raises `FulaError` for a column or a site that there is not.
        """
        known = {name for row in self.rows for name in row}
        for name in columns:
            if self.rows and name not in known:
                raise FulaError(f"the table has no column '{name}'{nearest(name, known)}")
        named = {n: v for n, v in columns.items() if n in _SITES and isinstance(v, str)}
        numbers = self._site_numbers(named) if named else {}
        return [
            r
            for r in self.rows
            if all(
                r.get(n) == (numbers[n].get(r[_SITES[n]]) if n in named else value)
                for n, value in columns.items()
            )
        ]

    def _site_numbers(self, named: Mapping[str, str]) -> dict[str, dict[str, int]]:
        """For each column of a site: its number in every donor that has a site of that name."""
        from .runs.kept import site_names

        names = site_names(Store.open(self.folder), self.models)
        numbers = {}
        for column, site in named.items():
            donors = {row[_SITES[column]] for row in self.rows}
            numbers[column] = {d: names[d].index(site) + 1 for d in donors if site in names[d]}
            if donors and not numbers[column]:
                known = dict.fromkeys(name for donor in sorted(donors) for name in names[donor])
                raise FulaError(f"no donor has a {column} '{site}'{nearest(site, known)}")
        return numbers

    def to_arrow(self) -> pyarrow.Table:
        """The table with typed columns, null where a cell has no value."""
        return table(self.rows)

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a data frame; raises `FulaError` where pandas is not installed."""
        return _data_frame(self.to_arrow())

    def stitch(self, cell: str) -> dict[str, Tensor]:
        """The trained stitch of a cell (a row's `cell`), as CPU tensors by name."""
        return Store.open(self.folder).stitch(cell)

    def model(self, cell: str) -> nn.Module:
        """The whole stitched model of a cell: front, stitch and end, with the running statistics
        that training left behind and the run's normalisation, on the CPU, in eval mode.

        Images (B, C, H, W) in [0, 1] to logits (B, classes). The stitch alone is not the cell's
        model where `bn = "train"`. Raises `FulaError` for a cell that is not finished.
        """
        from .runs.kept import cell_model

        return cell_model(Store.open(self.folder), cell, self.models)

    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them."""
        rest = len(self.rows) - _SHOWN_ROWS
        rows = [[row.get(n) for n in _SHOWN_COLUMNS] for row in self.rows[:_SHOWN_ROWS]]
        more = f"; and {rest} more rows, see rows or to_pandas()" if rest > 0 else ""
        return html_table(_SHOWN_COLUMNS, rows, f"{self!r}{more}")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"Results({len(self.rows)} of {self.cells} cells{failed}, '{self.folder}')"


def similarities(folder: str | Path) -> Similarities:
    """The similarity table of a run from its folder; raises `FulaError` where there is no run."""
    store = Store.open(folder)
    rows = table(similarity_rows(store), SIMILARITY_COLUMNS).to_pylist()
    return Similarities(Path(folder), tuple(rows))


_SHOWN = ("front", "end", "front_site", "end_site", "measure", "value", "p", "calibrated")


@dataclass(frozen=True)
class Similarities:
    """Measures of donors against each other, site by site.

    `rows`: one dictionary per front, end, site pair and measure (`store.similarity_table` says what
    the columns mean), in the order of pairs and measures. `folder`: the run's folder.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]

    @property
    def report(self) -> Path:
        """The run's report, one HTML page."""
        return self.folder / "report.html"

    def matrix(self, measure: str, front: str, end: str, column: str = "value") -> np.ndarray:
        """(front sites, end sites) of a measure between two donors; (1, 1) for one of outputs.

        `column`: another number of the table, as "p" or "calibrated". NaN where there is none.
        Raises `FulaError` for a pair, measure or column that the table does not have.
        """
        self._check(measure=measure, front=front, end=end)
        if column not in SIMILARITY_COLUMNS:
            raise FulaError(
                f"the table has no column '{column}'{nearest(column, SIMILARITY_COLUMNS)}"
            )
        asked = {"measure": measure, "front": front, "end": end}
        return matrix_of([r for r in self.rows if asked.items() <= r.items()], column)

    def _check(self, **asked: str) -> None:
        for name, value in asked.items():
            if value not in (known := dict.fromkeys(row[name] for row in self.rows)):
                raise FulaError(f"no {name} '{value}' in the table{nearest(value, known)}")
        if not any(asked.items() <= row.items() for row in self.rows):
            pairs = dict.fromkeys(f"{r['front']} with {r['end']}" for r in self.rows)
            raise FulaError(
                f"{asked['measure']} of '{asked['front']}' with '{asked['end']}' was not computed; "
                f"pairs: {', '.join(pairs)}"
            )

    def to_arrow(self) -> pyarrow.Table:
        """The table with typed columns."""
        return table(self.rows, SIMILARITY_COLUMNS)

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a data frame; raises `FulaError` where pandas is not installed."""
        return _data_frame(self.to_arrow())

    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them."""
        rows = [[row.get(n) for n in _SHOWN] for row in self.rows[:_SHOWN_ROWS]]
        return html_table(_SHOWN, rows, f"{self!r}; see rows, matrix(...) or to_pandas()")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        measures = len({row["measure"] for row in self.rows})
        pairs = len({(row["front"], row["end"]) for row in self.rows})
        return f"Similarities({measures} measures, {pairs} pairs of donors, '{self.folder}')"
