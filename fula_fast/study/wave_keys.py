"""Which cells may run together: those of one key."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..methods.staging import SUM
from .cell import Cell
from .cells import Cells, combined


@dataclass(frozen=True)
class WaveKey:
    """What all cells of a wave share. `epochs` is 0 where no training pass is made.

    `attack` is the attack's settings, empty without one; lanes of different alpha > 0 may share.
    `combine`: lanes whose gradients are combined pay a backward pass for each of their methods.
    """

    front: str
    end: str
    shortcut: str
    subset: int | None
    data_seed: int
    stitch_data: str
    crop_padding: int
    flip: bool
    batch_size: int
    epochs: int
    hook: str
    bn: str
    target_bn: str
    dropout: str
    stitch_bn: str
    stitch_bias: bool
    optimiser: str
    attack: str
    combine: str = SUM


OWN = ("front", "end", "shortcut", "subset", "data_seed")
"""Parts of a key that are a cell's own; the others follow from its treatment and alpha."""


def wave_key(cell: Cell) -> WaveKey:
    """The key of the waves that a cell may ride in."""
    p = cell.protocol
    attacked = cell.alpha > 0 and cell.trains
    values = {name: getattr(p, name) for name in _FROM_PROTOCOL}
    return WaveKey(
        front=cell.front,
        end=cell.end,
        shortcut=cell.shortcut_label,
        subset=cell.subset,
        data_seed=cell.data_seed,
        target_bn=p.resolved_target_bn,
        attack=f"{p.attack.model_dump_json()} {p.attack_target} {p.share}" if attacked else "",
        epochs=p.epochs if cell.trains else 0,
        combine=cell.combine,
        **values,
    )


_FROM_PROTOCOL = (
    "stitch_data", "crop_padding", "flip", "batch_size", "hook", "bn", "dropout", "stitch_bn",
    "stitch_bias", "optimiser",
)  # fmt: skip


def by_key(cells: Cells) -> tuple[list[WaveKey], list[np.ndarray]]:
    """Every key and the positions of its cells, in order of their first ones."""
    if not cells:
        return [], []
    columns, words = cells.columns, cells.words
    rules, rule = _rules(cells)
    labels = [mark.label if mark else "none" for mark in words.shortcut]
    label = np.array([labels.index(each) for each in labels])[columns["shortcut"]]
    codes = [columns[n] for n in ("front", "end", "subset", "data_seed")]
    _, first, found = np.unique(
        combined(*codes, label, rule), return_index=True, return_inverse=True
    )
    group = np.argsort(np.argsort(first))[found]  # numbered as they come
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group))[:-1])
    names = ("front", "end", "shortcut", "subset", "data_seed")
    firsts = np.sort(first)
    own = zip(*(columns[n][firsts].tolist() for n in names), rule[firsts].tolist(), strict=True)
    keys = [
        replace(
            rules[r], front=words.donors[f], end=words.donors[e], shortcut=labels[s],
            subset=words.subset[n], data_seed=seed,
        )
        for f, e, s, n, seed, r in own
    ]  # fmt: skip
    return keys, members


def _rules(cells: Cells) -> tuple[list[WaveKey], np.ndarray]:
    """The parts of keys that treatments and alphas decide, and which is each cell's."""
    words, known = cells.words, {}
    table = np.empty((len(words.treatments), len(words.alpha)), np.int32)
    for t, how in enumerate(words.treatments):
        for a, alpha in enumerate(words.alpha):
            cell = Cell("", "", 1, 1, how.method, how.objective, how.protocol, alpha,
                        combine=how.combine)  # fmt: skip
            table[t, a] = known.setdefault(wave_key(cell), len(known))
    return list(known), table[cells.columns["treatment"], cells.columns["alpha"]]
