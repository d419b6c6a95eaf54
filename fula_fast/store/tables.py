"""The table of results: typed columns, rebuilt from the shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FulaError
from ..files.atomic import replacing

if TYPE_CHECKING:
    import pyarrow

COLUMNS: dict[str, str] = {
    "cell": "string",
    "front": "string",
    "end": "string",
    "front_site": "int64",
    "end_site": "int64",
    "method": "string",
    "protocol": "string",
    "alpha": "double",
    "shortcut": "string",
    "subset": "int64",
    "seed": "int64",
    "data_seed": "int64",
    "status": "string",
    "error": "string",
    "accuracy": "double",
    "agreement_top1": "double",
    "agreement_right_wrong": "double",
    "agreement_soft": "double",
    "kappa": "double",
    "loss": "double",
    "term_stitch": "double",
    "train_seconds": "double",
    "device": "string",
    "precision": "string",
    "engine_mode": "string",
    "front_accuracy": "double",
    "end_accuracy": "double",
    "front_hash": "string",
    "end_hash": "string",
    "weighting": "string",
    "bn": "string",
    "epochs": "int64",
    "front_sites": "int64",
    "end_sites": "int64",
}
"""Columns of every table, in order, with their Arrow types. Others follow: `version_*` (strings),
then measures by name (doubles, booleans, lists of doubles, or strings; objects as JSON strings). In
CSV, which has none, lists are JSON strings."""

SETTING = ("protocol", "alpha", "shortcut", "subset", "weighting", "bn", "epochs")
"""Columns that tell settings apart, beside the run's own axes."""


def table(rows: Iterable[dict[str, Any]], columns: Mapping[str, str] = COLUMNS) -> pyarrow.Table:
    """Rows as an Arrow table: known columns always there, null where a row has no value.

    Raises `FulaError` for a value that its column's type cannot hold.
    """
    import pyarrow

    rows = list(rows)
    types = {**columns, **_extra_types(rows, columns)}
    arrays = {name: _array(name, kind, rows) for name, kind in types.items()}
    return pyarrow.table(arrays)


def write_tables(
    folder: Path,
    rows: Iterable[dict[str, Any]],
    stem: str = "results",
    columns: Mapping[str, str] = COLUMNS,
) -> None:
    """Write `results.parquet` and `results.csv` (null is an empty field) with the same values."""
    from pyarrow import csv, parquet

    results = table(rows, columns)
    with replacing(folder / f"{stem}.parquet") as temporary:
        parquet.write_table(results, temporary)
    with replacing(folder / f"{stem}.csv") as temporary:
        csv.write_csv(_inert(_without_lists(results)), temporary)


def _without_lists(results: pyarrow.Table) -> pyarrow.Table:
    """The table with its lists as JSON strings."""
    import pyarrow

    for position, field in enumerate(results.schema):
        if pyarrow.types.is_list(field.type):
            values = results.column(position).to_pylist()
            texts = pyarrow.array([v if v is None else json.dumps(v) for v in values], "string")
            results = results.set_column(position, field.name, texts)
    return results


def _inert(results: pyarrow.Table) -> pyarrow.Table:
    """The table with texts that a spreadsheet would run as formulas behind an apostrophe."""
    import pyarrow
    from pyarrow import compute

    for place, field in enumerate(results.schema):
        if pyarrow.types.is_string(field.type):
            plain = compute.replace_substring_regex(results[place], r"^([=+\-@\t\r])", r"'\1")
            results = results.set_column(place, field, plain)
    return results


def _extra_types(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> dict[str, str]:
    names = sorted({name for row in rows for name in row} - set(columns))
    names.sort(key=lambda name: not name.startswith("version_"))
    return {name: _extra_type(name, [row.get(name) for row in rows]) for name in names}


def _extra_type(name: str, values: list[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {list} and all(_are_numbers(v) for v in values if v is not None):
        return "list"
    if name.startswith("version_") or kinds - {bool, int, float}:
        return "string"
    return "bool" if kinds == {bool} else "double"


def _array(name: str, kind: str, rows: list[dict[str, Any]]) -> pyarrow.Array:
    import pyarrow

    values = [row.get(name) for row in rows]
    if kind == "string":
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    try:
        return pyarrow.array(values, _arrow_type(kind))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise FulaError(f"column '{name}' holds a value that is no {kind}: {error}") from error


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _arrow_type(kind: str) -> pyarrow.DataType:
    import pyarrow

    if kind == "list":
        return pyarrow.list_(pyarrow.float64())
    return getattr(pyarrow, _FACTORY.get(kind, kind))()


_FACTORY = {"double": "float64", "bool": "bool_"}
