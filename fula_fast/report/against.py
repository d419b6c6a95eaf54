"""A run beside a table of other runs' results, where its own donors are not in the table.

Cells meet by what was stitched, not by its name: the data, the architectures of both donors, sites,
method, protocol and setting. Seeds of unlike donors are no pairs, so the interval is Welch's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ..errors import FulaError
from ..measures.intervals import Difference
from ..models.families import DEFAULTS
from ..store.tables import SETTING
from ..study.donor_spec import DonorSpec, ShortcutSpec
from .between_runs import CELL, Compared, RunDifference, RunRows, adjusted, apart, compared
from .studies import METRICS, Row, Seed
from .style import label

ALIKE = (
    "source", "front_model", "end_model", "front_sites", "end_sites", "method", "protocol", "alpha",
    "shortcut", "subset", "weighting", "bn",
)  # fmt: skip
"""Columns that a run's cells and the table's have in common, beside their sites and the axes of
both; `source`: the data set, of whatever size."""

_ROUNDING = 1e-12  # of the values, as in `measures.intervals`

_Sites = tuple[int, int]
_Group = dict[Seed, dict[_Sites, Row]]
_Alike = tuple[tuple[str, Any], ...]
_Whose = tuple[str, ...]
"""The donors of a group, and of a table's: its experiment, scale and data."""


def against(mine: RunRows, table: RunRows) -> Compared:
    """What differs between a run and a table of results, whose rows have the columns `ALIKE`.

    Cells that stand in both by their id are compared in pairs, and no others then. Cells that
    several experiments of the table share are compared once. Raises `FulaError` where nothing is
    alike.
    """
    known = {row["cell"] for row in table.rows} & {row["cell"] for row in mine.rows}
    if known:
        return compared(*_shared(mine, table, known))
    found = adjusted(list(_alike(mine, table)))
    if not found:
        sources = {row.get("source") for row in mine.rows}
        near = [row for row in table.rows if row.get("source") in sources]
        raise FulaError(
            f"no cell of {mine.name} is like one of {table.name}: none has the same data "
            f"({_sources(mine.rows)}; there: {_sources(table.rows)}), architectures "
            f"({_pairs(mine.rows)}; there: {_pairs(near or table.rows)}), sites, method and setting"
        )
    told = (
        f"first: {mine.name}",
        f"second: {table.name}, other donors of the same architectures",
        "may still differ: width, epochs, size and number of images, the training of the donors",
        "not paired: Welch's t over seeds; seeds: the smaller number of both",
    )
    return Compared(tuple(found), told)


def _shared(mine: RunRows, table: RunRows, known: set[str]) -> tuple[RunRows, RunRows]:
    """Both sides' rows of the cells that stand in both. The table's, which several experiments may
    hold, come once, named and set as in the run: an experiment may vary what the run leaves."""
    ours = {row["cell"]: row for row in mine.rows if row["cell"] in known}
    theirs = {row["cell"]: row for row in reversed(table.rows) if row["cell"] in known}
    names = (*CELL, *SETTING, *mine.axes, *table.axes)
    same = [theirs[cell] | {n: row.get(n) for n in names} for cell, row in ours.items()]
    return (
        RunRows(mine.name, list(ours.values()), mine.axes),
        RunRows(table.name, same, table.axes),
    )


def _sources(rows: Iterable[Row]) -> str:
    return _few(row.get("source") or "unknown" for row in rows)


def _pairs(rows: Iterable[Row]) -> str:
    return _few(f"'{row['front_model']} → {row['end_model']}'" for row in rows)


def _few(names: Iterable[str], most: int = 4) -> str:
    every = list(dict.fromkeys(names))
    more = [f"and {len(every) - most} more"] if len(every) > most else []
    return ", ".join([*every[:most], *more])


def _alike(mine: RunRows, table: RunRows) -> Iterator[RunDifference]:
    axes = tuple(sorted({*mine.axes, *table.axes}))
    said = dict.fromkeys((*apart([mine.rows], SETTING), *axes))
    theirs = _groups(table.rows, axes)
    for alike, groups in _groups(mine.rows, axes).items():
        for whose, group in groups.items():
            words = ", ".join([*_named([whose]), *_method(dict(alike), said)])
            for whom, sites, rows in _met(group, theirs.get(alike, {})):
                told = _named(whom)
                other = told[0] + (f" ({', '.join(told[1:])})" if told[1:] else "")
                yield from _differences(f"{words} | {other}", sites, group, rows)


def _groups(rows: Iterable[Row], axes: Sequence[str]) -> Mapping[_Alike, dict[_Whose, _Group]]:
    """Rows by what is alike, then by whose they are, then by seed, then by sites."""
    found: dict[_Alike, dict[_Whose, _Group]] = {}
    for row in rows:
        if row["status"] == "ok":
            alike = [(name, _plain(row.get(name))) for name in ALIKE]
            alike += [(name, _text(row.get(name))) for name in axes]
            origin = (str(row.get(name) or "") for name in ("experiment", "scale", "data"))
            whose = (f"{row['front']} → {row['end']}", *origin)
            group = found.setdefault(tuple(alike), {}).setdefault(whose, {})
            cells = group.setdefault((row.get("seed"), row.get("data_seed")), {})
            cells[row["front_site"], row["end_site"]] = row
    return found


def _plain(value: Any) -> Any:
    return None if value in ("", "none") else value


def _text(value: Any) -> str | None:
    """An axis' value: a table has text where values are of several kinds."""
    return None if value is None else str(value)


def _met(
    ours: _Group, theirs: Mapping[_Whose, _Group]
) -> Iterator[tuple[list[_Whose], set[_Sites], _Group]]:
    """Of the groups that are alike: whose, the sites that all seeds of both have, and the group;
    those with the same cells at these sites are one, of several experiments."""
    found: dict[frozenset[str], tuple[list[_Whose], set[_Sites], _Group]] = {}
    for whose, rows in theirs.items():
        sites = set.intersection(*map(set, (*ours.values(), *rows.values())))
        ids = frozenset(cells[place]["cell"] for cells in rows.values() for place in sites)
        if sites:
            found.setdefault(ids, ([], sites, rows))[0].append(whose)
    yield from found.values()


def _named(whose: Sequence[_Whose]) -> list[str]:
    """In words, the first of them and how many further experiments."""
    pair, experiment, *rest = whose[0]
    more = len({each[1] for each in whose}) - 1
    return [pair, *filter(None, (experiment + (f" and {more} more" if more else ""), *rest))]


def _method(alike: Mapping[str, Any], said: Iterable[str]) -> list[str]:
    more = [f"{name} {alike[name]}" for name in said if alike.get(name) is not None]
    return [label(alike["method"]), *more]


def _differences(
    words: str, sites: set[_Sites], ours: _Group, theirs: _Group
) -> Iterator[RunDifference]:
    """Of every measure, over sites that all seeds of both have."""
    for measure in METRICS:
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
    seed differs but for rounding."""
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2 or all(np.ptp(x) <= _ROUNDING * np.abs(x).max() for x in (a, b)):
        return Difference(mean, *[float("nan")] * 3)
    # by the formula: SciPy warns of a side that is constant, which here is a result like others
    errors = np.array([x.var(ddof=1) / len(x) for x in (a, b)])
    freedom = errors.sum() ** 2 / (errors**2 / [len(a) - 1, len(b) - 1]).sum()
    error = np.sqrt(errors.sum())
    half = float(error * stats.t.ppf(0.975, freedom))
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - half, mean + half, p)


def with_models(rows: Sequence[Row], donors: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows with the architectures of their donors, `donors` of a run's spec; a row's `source` is
    the data set of the run."""
    return [row | {f"{role}_model": _model(row, role, donors) for role in _ROLES} for row in rows]


_ROLES = ("front", "end")


def _model(row: Row, role: str, donors: Mapping[str, Mapping[str, Any]]) -> str:
    donor = donors.get(row[role])
    return "" if donor is None else model_of(donor, row.get("source") or "")


_TOLD = (
    "stem", "batch_norm", "recipe", "head", "pretrained", "adversarial", "untrained",
    "permute_labels",
)  # fmt: skip
"""Keys of a donor's table that are said where they are not as usual."""


def model_of(donor: Mapping[str, Any], source: str = "") -> str:
    """`resnet18, adversarial`, of a donor's table: what it is, whatever its width, and what is
    unusual about its training, whatever its length; `source`: the data set of its run."""
    model = str(donor.get("model") or "unnamed")
    said = ["without residuals"] if donor.get("residuals") is False else []
    said += [f"{name} {value}" for name, value in (donor.get("options") or {}).items()]
    layout = DEFAULTS.get(model, {})
    for name in _TOLD:
        value = donor.get(name)
        if value not in (None, layout.get(name, DonorSpec.model_fields[name].default)):
            said.append(name if value is True or name == "adversarial" else f"{name} {value}")
    return ", ".join([model, *said, *_marked(donor.get("shortcut")), *_shown(donor, source)])


def _marked(shortcut: Mapping[str, Any] | None) -> list[str]:
    return [f"shortcut {ShortcutSpec.model_validate(shortcut).label}"] if shortcut else []


def _shown(donor: Mapping[str, Any], source: str) -> list[str]:
    """The donor's own data, where they are others than the run's, or have options."""
    data = donor.get("data") or {}
    own = [data["source"]] if source and data.get("source", source) != source else []
    own += [f"{name} {value}" for name, value in (data.get("options") or {}).items()]
    return [" ".join(["data", *own])] if own else []
