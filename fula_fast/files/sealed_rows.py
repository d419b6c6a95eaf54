"""Columns of many rows in a sealed Parquet file, of which a part is read and verified alone.

The seal stands in a file of ours beside it: the digest of every group of rows, and of what names
their places (the footer). A reader of some rows reads the footer and their groups.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from .atomic import replacing
from .sealed import Damaged, Kind

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from pyarrow.parquet import FileMetaData

GROUP = 1 << 14
"""Rows of a group."""
_KEPT = 4
"""Groups that a reader keeps at hand."""


class Seal(TypedDict):
    """What a file was written as. `ends`: of every group, in bytes; `digests`: of each, and last of
    the footer (SHA-256)."""

    rows: int
    bytes: int
    ends: list[int]
    digests: list[str]


def write_rows(path: Path, columns: Mapping[str, Any]) -> Seal:
    """Write columns of equal length (NumPy arrays or lists; bytes as text), atomically."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: _array(values) for name, values in columns.items()})
    coded = [f.name for f in table.schema if not pyarrow.types.is_string(f.type)]
    with replacing(path) as temporary:
        parquet.write_table(
            table, temporary, row_group_size=GROUP, compression="zstd", use_dictionary=coded
        )
        return _seal(temporary, parquet.read_metadata(temporary))


def _array(values: Any) -> pyarrow.Array:
    import pyarrow

    found = pyarrow.array(values)
    is_bytes = pyarrow.types.is_binary(found.type) or pyarrow.types.is_fixed_size_binary(found.type)
    return found.cast(pyarrow.binary()).cast(pyarrow.string()) if is_bytes else found


def _seal(path: Path, meta: FileMetaData) -> Seal:
    ends = [_end(meta, group) for group in range(meta.num_row_groups)]
    content = path.read_bytes()
    parts = zip([0, *ends], [*ends, len(content)], strict=True)
    digests = [hashlib.sha256(content[a:b]).hexdigest() for a, b in parts]
    return {"rows": meta.num_rows, "bytes": len(content), "ends": ends, "digests": digests}


def _end(meta: FileMetaData, group: int) -> int:
    """Where a group's last column ends."""
    found = meta.row_group(group)
    ends = []
    for k in range(found.num_columns):
        column = found.column(k)
        first = [column.data_page_offset, column.dictionary_page_offset]
        start = min(offset for offset in first if offset is not None)
        ends.append(start + column.total_compressed_size)
    return max(ends)


class SealedRows:
    """The columns of a file, read in groups of rows. `seal`: what `write_rows` returned.

    Raises `Damaged` for a file that is not what was written: at once for its size and footer, and
    for a group of rows when it is read.
    """

    def __init__(self, path: Path, kind: Kind, seal: Seal) -> None:
        self.path, self.kind, self.seal = path, kind, seal
        self._bounds = [0, *seal["ends"], seal["bytes"]]
        self._at_hand: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        if len(seal["digests"]) != len(seal["ends"]) + 1:
            raise Damaged(path, kind, "its seal is of another form")
        self._footer = self._verified(len(seal["ends"]))

    def __len__(self) -> int:
        return self.seal["rows"]

    def __call__(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The columns of the rows from start to stop; text as bytes."""
        import numpy as np

        first, last = start // GROUP, max(start, stop - 1) // GROUP
        parts = [self._group(k) for k in range(first, last + 1)]
        span = slice(start - first * GROUP, stop - first * GROUP)
        if len(parts) == 1:
            return {name: column[span] for name, column in parts[0].items()}
        return {name: np.concatenate([part[name] for part in parts])[span] for name in parts[0]}

    def all_of(self, *names: str) -> pyarrow.Table:
        """Whole columns."""
        import pyarrow

        groups = (self._decoded(k, names) for k in range(len(self.seal["ends"])))
        return pyarrow.concat_tables([self._empty.select(names), *groups])

    def _group(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._at_hand:
            found = self._decoded(number) if self.seal["ends"] else self._empty
            self._at_hand[number] = {name: _numbers(found[name]) for name in found.column_names}
            if len(self._at_hand) > _KEPT:
                self._at_hand.popitem(last=False)
        return self._at_hand[number]

    @property
    def _empty(self) -> pyarrow.Table:
        return self._meta.schema.to_arrow_schema().empty_table()

    @cached_property
    def _meta(self) -> FileMetaData:
        from pyarrow import BufferReader, parquet

        return parquet.read_metadata(BufferReader(self._footer))

    def _decoded(self, number: int, names: Sequence[str] | None = None) -> pyarrow.Table:
        from pyarrow import ArrowException, parquet

        self._verified(number)
        try:
            with parquet.ParquetFile(self.path, metadata=self._meta) as file:
                return file.read_row_group(number, None if names is None else list(names))
        except (ArrowException, OSError, ValueError) as error:
            raise Damaged(self.path, self.kind, f"it cannot be read ({error})") from None

    def _verified(self, number: int) -> bytes:
        """A group's bytes, or (behind the last group) the footer's."""
        start, stop = self._bounds[number : number + 2]
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                # one byte more behind the end: nothing may follow
                content = file.read(stop - start + (stop == self.seal["bytes"]))
        except FileNotFoundError:
            raise Damaged(self.path, self.kind, "it is missing") from None
        except OSError as error:
            raise Damaged(self.path, self.kind, f"it cannot be read ({error.strerror})") from None
        if hashlib.sha256(content).hexdigest() != self.seal["digests"][number]:
            raise Damaged(self.path, self.kind, "its content does not match its digest")
        return content


def _numbers(column: pyarrow.ChunkedArray) -> np.ndarray:
    import pyarrow

    return _bytes(column) if pyarrow.types.is_string(column.type) else column.to_numpy()


def _bytes(column: pyarrow.ChunkedArray) -> np.ndarray:
    """Text as NumPy bytes; without an object for each where all are equally long."""
    import numpy as np
    import pyarrow
    from pyarrow import compute

    lengths = compute.min_max(compute.binary_length(column)).as_py()
    width = lengths["max"]
    if not width or lengths["min"] != width:
        return np.array(column.to_pylist(), "S")
    fixed = column.combine_chunks().cast(pyarrow.binary()).cast(pyarrow.binary(width))
    return np.frombuffer(fixed.buffers()[1], f"S{width}", len(fixed), fixed.offset * width)
