"""Similarity of donors in a run's folder: a sealed file for each pair, and a long-form table.

RUN/similarity/*.json             finished pairs; the source of truth
RUN/similarity.parquet, .csv      rebuilt from them
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from ..errors import FulaError
from ..files import sealed
from .finished import StoreWarning
from .run_folder import Store
from .tables import write_tables

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]

SIMILARITY_COLUMNS: dict[str, str] = {
    "front": "string",
    "end": "string",
    "front_site": "int64",
    "end_site": "int64",
    "measure": "string",
    "features": "string",
    "value": "double",
    "p": "double",
    "calibrated": "double",
    "low": "double",
    "high": "double",
    "n": "int64",
    "samples": "int64",
    "p_holm": "double",
    "p_family": "double",
    "p_best": "double",
    "front_effective_rank": "double",
    "end_effective_rank": "double",
}
"""Columns of the similarity table, in order, with their Arrow types; measures of outputs have no
sites."""

MEANINGS = {
    "front": "the first donor; its sites are rows of a matrix",
    "end": "the second donor; its sites are columns",
    "front_site": "site of the front, from 1; empty where outputs are compared",
    "end_site": "site of the end",
    "measure": "name of the measure",
    "features": "how activations became matrices: the words that acted on the two donors' sites",
    "value": "the measure on n images",
    "p": "share of permutations (and the data themselves) that are as similar, on the samples",
    "calibrated": "0 where the score is not above chance, 1 for equal representations: the part of "
    "the way from the 95 % quantile of chance, on the samples",
    "low": "lower end of the 95 % interval over images, from half samples",
    "high": "its upper end",
    "n": "images behind value",
    "samples": "images behind p, calibrated, low and high",
    "p_holm": "p, corrected by Holm for all cells of the matrix; it cannot fall below their number "
    "over that of the permutations",
    "p_family": "p, corrected for all cells of the matrix by the largest score of each permutation "
    "(step-down maxT of standardised scores): what the report marks",
    "p_best": "p of the matrix's most similar cell against the most similar of each permutation",
    "front_effective_rank": "effective rank of the front's layer: exp of the entropy of its "
    "singular values",
    "end_effective_rank": "of the end's layer",
}


def write_pair(store: Store, pair: Sequence[str], facts: Mapping[str, Any], rows: Any) -> None:
    """Store the finished rows of a (front, end) pair. `facts`: what decides them, beside the spec:
    content hashes of donors and images."""
    content = {"run": store.id, "pair": list(pair), "facts": dict(facts), "rows": list(rows)}
    sealed.write_json(_path(store, pair), sealed.SIMILARITY, content, indent=None)


class _Pair(TypedDict):
    run: str
    pair: list[str]
    facts: dict[str, Any]
    rows: list[dict[str, Any]]


def read_pair(store: Store, pair: Sequence[str]) -> dict[str, Any] | None:
    """The `facts` and `rows` of a finished pair; None for a missing one, and, with a warning, for a
    damaged one or one of another run."""
    path = _path(store, pair)
    try:
        found = sealed.read_json(path, sealed.SIMILARITY, _Pair)
        if (found["run"], found["pair"]) != (store.id, list(pair)):
            raise sealed.Damaged(path, sealed.SIMILARITY, "it is of another pair or run")
    except FileNotFoundError:
        return None
    except sealed.Damaged as error:
        warnings.warn(str(error), StoreWarning, stacklevel=2)
        return None
    return found


def missing_pairs(store: Store) -> list[tuple[str, str]]:
    """The planned pairs without rows."""
    return [pair for pair in planned_pairs(store) if read_pair(store, pair) is None]


def planned_pairs(store: Store) -> list[tuple[str, str]]:
    """(front, end) of every pair that the run's plan compares; none without `[similarity]`."""
    planned = store.plan.get("similarity") or {}
    return [(front, end) for front, end in planned.get("pairs", ())]


def similarity_rows(store: Store) -> list[Row]:
    """The rows of all finished pairs, in the plan's order."""
    found = (read_pair(store, pair) for pair in planned_pairs(store))
    return [row for each in found if each is not None for row in each["rows"]]


def matrix_of(rows: Iterable[Row], column: str) -> np.ndarray:
    """(front sites, end sites) of one pair's and measure's rows, NaN where there is no number;
    (1, 1) for a measure of outputs."""
    import numpy as np

    rows = list(rows)
    places = [((r.get("front_site") or 1) - 1, (r.get("end_site") or 1) - 1) for r in rows]
    matrix = np.full([1 + max(axis) for axis in zip(*places, strict=True)], np.nan)
    for place, row in zip(places, rows, strict=True):
        value = row.get(column)
        matrix[place] = np.nan if value is None else value
    return matrix


def check_same(store: Store, pair: Sequence[str], facts: Mapping[str, Any]) -> None:
    """`FulaError` where a finished pair was computed from other donors or other images."""
    found = read_pair(store, pair)
    if not found:
        return
    for name, value in facts.items():
        if found["facts"].get(name) != value:
            raise FulaError(
                f"{name} of the finished pair {pair[0]}, {pair[1]} in '{store.folder}' has content "
                f"{found['facts'].get(name)}, and now {value} (another order counts too); restore "
                "it, or give another --out"
            )


def write_similarity(store: Store) -> None:
    """Rebuild `similarity.parquet` and `similarity.csv`; nothing without `[similarity]`."""
    if planned_pairs(store):
        rows = similarity_rows(store)
        write_tables(store.folder, rows, "similarity", SIMILARITY_COLUMNS)


def _path(store: Store, pair: Sequence[str]) -> Path:
    return store.folder / "similarity" / f"{sealed.digest_of(list(pair))[:16]}.json"
