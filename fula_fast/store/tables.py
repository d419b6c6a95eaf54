"""The table of results: typed columns, rebuilt from the shards."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FulaError
from ..files.atomic import replacing

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

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


def table(rows: Iterable[Row], columns: Mapping[str, str] = COLUMNS) -> pyarrow.Table:
    """Rows as an Arrow table: known columns always there, null where a row has no value.

    Raises `FulaError` for a value that its column's type cannot hold.
    """
    import pyarrow

    values = _values(list(rows), columns)
    extra = {n: _extra_type(n, values[n]) for n in _ordered(values.keys() - columns.keys())}
    types = {**columns, **extra}
    return pyarrow.table({name: _array(name, kind, values[name]) for name, kind in types.items()})


def _values(rows: Sequence[Row], columns: Iterable[str]) -> dict[str, Sequence[Any]]:
    """The columns' values, None where a row has none."""
    keys = sorted(set().union(*rows))
    try:  # rows of finished cells all have the same
        lists = zip(*map(itemgetter(*keys), rows), strict=True)
        found = dict(zip(keys, lists, strict=True))
    except (KeyError, TypeError):
        found = {name: [row.get(name) for row in rows] for name in keys}
    return {name: [None] * len(rows) for name in columns} | found


def table_of(
    read: Callable[[], Iterable[list[Row]]], columns: Mapping[str, str] = COLUMNS
) -> pyarrow.Table:
    """The table of rows that `read` gives in batches, of which one is in memory at a time.

    Other columns have the types that all their values allow; where batches differ in one, all are
    read once more.
    """
    import pyarrow

    parts = [table(rows, columns) for rows in read()] or [table((), columns)]
    types, clash = _common_types(parts, columns)
    if clash:
        parts = [table(rows, types) for rows in read()]
    schema = pyarrow.schema([(name, _arrow_type(kind)) for name, kind in types.items()])
    return pyarrow.concat_tables([_cast(part, schema) for part in parts])


def batches(parts: Iterable[list[Row]]) -> Iterator[list[Row]]:
    """Lists of rows joined to some thousands."""
    batch: list[Row] = []
    for part in parts:
        batch += part
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


_BATCH = 2_000


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """No search for cycles while the block runs: rows have none, and there are many."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _common_types(
    parts: Iterable[pyarrow.Table], columns: Mapping[str, str]
) -> tuple[dict[str, str], bool]:
    """The types of all columns in order, and whether some part has another one."""
    found: dict[str, set[str]] = {}
    for part in parts:
        for name in part.column_names:
            kinds = found.setdefault(name, set())
            if part[name].null_count < len(part):
                kinds.add(_kind(part.schema.field(name).type))
    extra = {name: _together(kinds) for name, kinds in found.items() if name not in columns}
    clash = any(len(kinds) > 1 for name, kinds in found.items() if name not in columns)
    return {**columns, **{name: extra[name] for name in _ordered(extra)}}, clash


def _together(kinds: set[str]) -> str:
    if len(kinds) < 2:
        return next(iter(kinds), "double")
    return "double" if kinds == {"bool", "double"} else "string"


def _kind(found: pyarrow.DataType) -> str:
    return "list" if str(found).startswith("list") else str(found)


def _cast(part: pyarrow.Table, schema: pyarrow.Schema) -> pyarrow.Table:
    """The part with all columns of the schema; one without values is of any type."""
    import pyarrow

    columns = [
        part[field.name]
        if field.name in part.column_names and part.schema.field(field.name).type == field.type
        else pyarrow.nulls(len(part), field.type)
        for field in schema
    ]
    return pyarrow.table(columns, schema)


def _ordered(names: Iterable[str]) -> list[str]:
    """Further columns: versions first, by name."""
    return sorted(names, key=lambda name: (not name.startswith("version_"), name))


def with_columns(found: pyarrow.Table, added: Mapping[str, Any]) -> pyarrow.Table:
    """The table with further columns (doubles) in their places."""
    import pyarrow

    columns = {name: found[name] for name in found.column_names}
    columns |= {name: pyarrow.array(v, pyarrow.float64()) for name, v in added.items()}
    known = [name for name in found.column_names if name in COLUMNS]
    return pyarrow.table(
        {name: columns[name] for name in (*known, *_ordered(columns.keys() - known))}
    )


def write_tables(
    folder: Path, rows: Iterable[Row], stem: str = "results", columns: Mapping[str, str] = COLUMNS
) -> None:
    """Write `results.parquet` and `results.csv` (null is an empty field) with the same values."""
    save_tables(folder, table(rows, columns), stem)


def save_tables(folder: Path, results: pyarrow.Table, stem: str = "results") -> None:
    """Write a table in both formats."""
    from pyarrow import csv, parquet

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


def _extra_type(name: str, values: Sequence[Any]) -> str:
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {list} and all(_are_numbers(v) for v in values if v is not None):
        return "list"
    if name.startswith("version_") or kinds - {bool, int, float}:
        return "string"
    return "bool" if kinds == {bool} else "double"


def _array(name: str, kind: str, values: Sequence[Any]) -> pyarrow.Array:
    import pyarrow

    if kind == "string" and set(map(type, values)) - {str, type(None)}:
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    try:
        return pyarrow.array(values, _arrow_type(kind))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, UnicodeEncodeError) as error:
        raise FulaError(f"column '{name}' holds a value that is no {kind}: {error}") from error


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _arrow_type(kind: str) -> pyarrow.DataType:
    import pyarrow

    if kind == "list":
        return pyarrow.list_(pyarrow.float64())
    return getattr(pyarrow, _FACTORY.get(kind, kind))()


_FACTORY = {"double": "float64", "bool": "bool_"}
