"""Equal cells become one, with a note for every kind that was merged."""

from __future__ import annotations

import numpy as np

from .cells import Cells, Columns, Words, combined, ids_of

_FIELDS = ("front", "end", "method", "alpha", "shortcut", "subset", "seed", "data_seed")


def merge(words: Words, columns: Columns, digests: np.ndarray) -> tuple[Cells, tuple[str, ...]]:
    """The cells, each of the digests (n, bytes) once and where it came first, and the notes."""
    _, first, number = np.unique(digests, return_index=True, return_inverse=True)
    kept, of = np.sort(first), first[number]
    (others,) = np.nonzero(of != np.arange(len(of)))
    notes = _notes(words, columns, of[others], others)
    columns = {name: column[kept] for name, column in columns.items()}
    columns["position"] = np.arange(len(kept), dtype=np.int32)
    return Cells.of(words, columns | {"id": ids_of(digests[kept])}), notes


def _notes(words: Words, columns: Columns, kept: np.ndarray, others: np.ndarray) -> tuple[str, ...]:
    """What equal cells were asked to differ in, and how many of which method, in order."""
    if not len(others):
        return ()
    how = columns["treatment"]
    pairs = [columns[name] for name in _FIELDS if name != "method"]
    kinds = combined(how[kept], how[others], *(c[kept] != c[others] for c in pairs))
    _, first, counts = np.unique(kinds, return_index=True, return_counts=True)
    by_reason: dict[tuple[str, ...], dict[str, int]] = {}
    for place in np.argsort(first):
        a, b = int(kept[first[place]]), int(others[first[place]])
        method = words.treatments[how[b]].method
        methods = by_reason.setdefault(_differences(words, columns, a, b), {})
        methods[method] = methods.get(method, 0) + int(counts[place])
    return tuple(_note(*found) for found in by_reason.items())


def _differences(words: Words, columns: Columns, kept: int, other: int) -> tuple[str, ...]:
    one, two = (words.treatments[columns["treatment"][k]] for k in (kept, other))
    differ = {n: columns[n][kept] != columns[n][other] for n in _FIELDS if n != "method"}
    differ["method"] = one.method != two.method
    a, b = one.protocol, two.protocol
    options = (f for f in type(a).model_fields if getattr(a, f) != getattr(b, f))
    return (*(name for name in _FIELDS if differ[name]), *options)


def _note(fields: tuple[str, ...], methods: dict[str, int]) -> str:
    count = sum(methods.values())
    cells = "1 cell was" if count == 1 else f"{count} cells were"
    reason = f"{' and '.join(fields)} makes no difference there" if fields else "listed twice"
    return f"{cells} merged with an equal one ({', '.join(methods)}): {reason}"
