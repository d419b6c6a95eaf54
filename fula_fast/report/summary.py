"""The findings of a run in a few lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..measures.self_accuracy import self_accuracy
from .studies import Row, Study, studies, title, varying
from .style import label

HEADINGS = ("method", "cells", "mean", "lowest", "at site", "highest", "end", "front", "soft agr.")


@dataclass(frozen=True)
class Finding:
    """One method of one study. `cells`: done ones; numbers are shares in [0, 1], NaN if unknown.

    `mean`, `lowest`, `highest`: accuracy over the same-site cells (over all where there are none),
    `lowest_at`: front and end site. `self_accuracy`: directed and averaged, for full square
    cross-layer matrices.
    """

    method: str
    cells: int
    mean: float
    lowest: float
    lowest_at: tuple[int, int]
    highest: float
    end: float
    front: float
    agreement_soft: float
    self_accuracy: tuple[float, float] | None


def findings(study: Study) -> list[Finding]:
    """One `Finding` per method of the study."""
    return [_finding(study, method) for method in study.methods]


def summary(rows: Iterable[Row], axes: Sequence[str] = ()) -> str:
    """A short text table per study for the terminal, with the failed cells counted at its end."""
    rows = list(rows)
    found = studies(rows, axes)
    shown = varying(found)
    blocks = [_block(study, title(study, shown)) for study in found]
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        blocks.append(f"{len(failed)} failed, first {failed[0]['cell']}: {failed[0].get('error')}")
    return "\n\n".join(blocks) or "no finished cells"


def _finding(study: Study, method: str) -> Finding:
    mine = [row for row in study.rows if row["method"] == method]
    line = [row for row in study.same_site() if row["method"] == method] or mine
    accuracy = np.array([_value(row, "accuracy") for row in line])
    known = not np.isnan(accuracy).all()
    worst = line[int(np.nanargmin(accuracy))] if known else line[0]
    return Finding(
        method=method,
        cells=len(mine),
        mean=_mean(accuracy),
        lowest=_value(worst, "accuracy"),
        lowest_at=(worst["front_site"], worst["end_site"]),
        highest=float(np.nanmax(accuracy)) if known else float("nan"),
        end=_value(line[0], "end_accuracy"),
        front=_value(line[0], "front_accuracy"),
        agreement_soft=_mean(np.array([_value(row, "agreement_soft") for row in line])),
        self_accuracy=_self_accuracy(study, method),
    )


def _self_accuracy(study: Study, method: str) -> tuple[float, float] | None:
    if not study.cross_layer or study.sites[0] != study.sites[1]:
        return None
    matrix = study.matrix(method, "accuracy")
    if np.isnan(matrix).any():
        return None
    return self_accuracy(matrix), self_accuracy(matrix, averaged=True)


def _value(row: Row, name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None else float(value)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def cells_of(finding: Finding) -> tuple[str, ...]:
    """A finding as table cells under `HEADINGS`."""
    same = finding.lowest_at[0] == finding.lowest_at[1]
    site = str(finding.lowest_at[1]) if same else "{} → {}".format(*finding.lowest_at)
    return (
        label(finding.method),
        str(finding.cells),
        *(percent(v) for v in (finding.mean, finding.lowest)),
        site,
        *(percent(v) for v in (finding.highest, finding.end, finding.front)),
        "–" if np.isnan(finding.agreement_soft) else f"{finding.agreement_soft:.3f}",
    )


def percent(value: float) -> str:
    """`93.4%`, or a dash where there is no number."""
    return "–" if np.isnan(value) else f"{value:.1%}"


def _block(study: Study, setting: str) -> str:
    found = findings(study)
    lines = aligned([HEADINGS, *map(cells_of, found)])
    head = f"{study.front} → {study.end}" + (f" ({setting})" if setting else "")
    return "\n".join([head, *lines, *_self_lines(found)])


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines of equal columns, flush right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in table]


def _self_lines(found: list[Finding]) -> list[str]:
    scores = [
        "{} {:.0%} ({:.0%})".format(label(f.method), *f.self_accuracy)
        for f in found
        if f.self_accuracy
    ]
    return [f"Self-Accuracy, directed (averaged): {', '.join(scores)}"] if scores else []
