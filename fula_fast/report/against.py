"""A run beside a table of other runs' results, where its own donors are not in the table.

Cells meet by what was stitched, not by its name: the architectures of both donors, sites, method,
protocol and setting. Seeds of unlike donors are no pairs, so the interval is Welch's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ..errors import FulaError
from ..measures.intervals import Difference
from .between_runs import Compared, RunDifference, RunRows, adjusted, compared
from .studies import METRICS, Row, Seed
from .style import label

ALIKE = (
    "front_model", "end_model", "front_sites", "end_sites", "method", "protocol", "alpha",
    "shortcut", "subset", "weighting",
)  # fmt: skip
"""Columns that a run's cells and the table's have in common, beside their sites."""

_Sites = tuple[int, int]
_Group = dict[Seed, dict[_Sites, Row]]


def against(mine: RunRows, table: RunRows) -> Compared:
    """What differs between a run and a table of results, whose rows have the columns `ALIKE`.

    Cells that stand in both by their id are compared in pairs, and no others then. Raises
    `FulaError` where nothing is alike.
    """
    known = {row["cell"] for row in table.rows} & {row["cell"] for row in mine.rows}
    if known:
        sides = [
            RunRows(s.name, [r for r in s.rows if r["cell"] in known], s.axes)
            for s in (mine, table)
        ]
        return compared(*sides)
    found = adjusted(list(_alike(mine, table)))
    if not found:
        raise FulaError(
            f"no cell of {mine.name} is like one of {table.name}: none has the same architectures "
            f"({_pairs(mine.rows)}; there: {_pairs(table.rows)}), sites, method and setting"
        )
    told = (
        f"first: {mine.name}",
        f"second: {table.name}, other donors of the same architectures",
        "not paired: Welch's t over seeds; seeds: the smaller number of both",
    )
    return Compared(tuple(found), told)


def _pairs(rows: Iterable[Row]) -> str:
    names = dict.fromkeys(f"{row['front_model']} → {row['end_model']}" for row in rows)
    return ", ".join(names)


def _alike(mine: RunRows, table: RunRows) -> Iterator[RunDifference]:
    ours, theirs = _groups(mine), _groups(table)
    for (alike, who), group in ours.items():
        for (other, whom), rows in theirs.items():
            if other == alike:
                words = f"{who}, {label(dict(alike)['method'])} | {whom}"
                yield from _differences(words, group, rows)


def _groups(side: RunRows) -> Mapping[tuple[Any, str], _Group]:
    """Rows by what is alike and whose they are, then by seed, then by sites."""
    found: dict[tuple[Any, str], _Group] = {}
    for row in side.rows:
        if row["status"] == "ok":
            alike = tuple((name, _plain(row.get(name))) for name in ALIKE)
            who = f"{row['front']} → {row['end']}" + _origin(row)
            seeds = found.setdefault((alike, who), {}).setdefault(
                (row.get("seed"), row.get("data_seed")), {}
            )
            seeds[row["front_site"], row["end_site"]] = row
    return found


def _origin(row: Row) -> str:
    """Of a table's row."""
    known = [row[name] for name in ("experiment", "scale", "data") if row.get(name)]
    return f" ({', '.join(known)})" if known else ""


def _plain(value: Any) -> Any:
    return None if value in ("", "none") else value


def _differences(words: str, ours: _Group, theirs: _Group) -> Iterator[RunDifference]:
    """Of every measure, over the sites that all seeds of both have."""
    every = [set(cells) for group in (ours, theirs) for cells in group.values()]
    sites = set.intersection(*every)
    for measure in METRICS if sites else ():
        a, b = (_means(group, sites, measure) for group in (ours, theirs))
        if a.size and b.size:
            seeds = min(len(a), len(b))
            yield RunDifference(
                words, measure, len(sites), seeds, float(a.mean()), float(b.mean()), _welch(a, b)
            )


def _means(group: _Group, sites: set[_Sites], measure: str) -> np.ndarray:
    """(seeds,): the mean over sites, of the seeds that have the measure at all of them."""
    values = [[cells[place].get(measure) for place in sites] for cells in group.values()]
    whole = [line for line in values if all(v is not None and not np.isnan(v) for v in line)]
    return np.array(whole, dtype=float).reshape(-1, len(sites)).mean(1)


def _welch(a: np.ndarray, b: np.ndarray) -> Difference:
    """Of means, with the interval of Welch (1947); NaN with a single seed on a side, or where no
    seed differs."""
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return Difference(mean, *[float("nan")] * 3)
    found: Any = stats.ttest_ind(a, b, equal_var=False)
    low, high = found.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(found.pvalue))


def with_models(rows: Sequence[Row], donors: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows with the architectures of their donors, `donors` of a run's spec."""
    names = {name: model_of(table) for name, table in donors.items()}
    return [
        row | {f"{role}_model": names.get(row[role], "") for role in ("front", "end")}
        for row in rows
    ]


def model_of(donor: Mapping[str, Any]) -> str:
    """`resnet18, adversarial`, of a donor's table: what it is, whatever its width."""
    model = str(donor.get("model") or "unnamed")
    said = ["without residuals"] if donor.get("residuals") is False else []
    said += [word for word in ("adversarial", "untrained", "permute_labels") if donor.get(word)]
    return ", ".join([model, *said])
