r"""A run's findings as LaTeX tables for a paper, one file each, for `\input` (needs booktabs).

RUN/tables/stitching.tex             one row per pair, setting and method
RUN/tables/similarity-FRONT-END.tex  one row per measure, and per stitching method
RUN/tables/seeds-FRONT-END.tex       their Self-Accuracy over seeds: means, paired differences
RUN/tables/tau-FRONT-END.tex         Kendall's tau between all of them
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import FulaError
from ..files.atomic import folder as made
from ..files.atomic import replacing
from ..store import Store
from ..store.similarity_table import similarity_rows
from .over_seeds import SEED_HEADINGS, seed_rows
from .page import file_name
from .similarity_cells import SIMILARITY_HEADINGS, PairSimilarity, pair_similarities, summary_rows
from .studies import Study, studies, title, varying
from .summary import HEADINGS, cells_of, findings

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "→": r"$\to$", "–": "--", "−": "$-$", "κ": r"$\kappa$", "²": "$^2$", "α": r"$\alpha$",
    "τ": r"$\tau$", "…": r"\dots{}",
}  # fmt: skip


def write_latex(run_folder: str | Path) -> list[Path]:
    """Write a run's tables into `tables/`, and give their paths.

    Raises `FulaError` where there is no run, or nothing in it yet.
    """
    store = Store.open(run_folder)
    found = studies(store.rows(), tuple(store.spec.get("grid", {}).get("axes", {})))
    tables = dict(_tables(found, pair_similarities(similarity_rows(store), found)))
    if not tables:
        raise FulaError(f"'{store.folder}' holds no finished cell or pair yet; go on with --resume")
    place, paths = made(store.folder / "tables"), []
    for name, text in tables.items():
        path = place / name
        with replacing(path) as temporary:
            temporary.write_text(text, "utf-8")
        paths.append(path)
    return paths


def _tables(found: list[Study], pairs: list[PairSimilarity]) -> Iterator[tuple[str, str]]:
    if found:
        yield "stitching.tex", tabular(("pair", "setting", *HEADINGS), list(_stitching(found)))
    for number, pair in enumerate(pairs):
        names = (pair.front, pair.end), number, len(pairs)
        text = tabular(SIMILARITY_HEADINGS, summary_rows(pair))
        yield file_name("similarity", *names, ".tex"), text
        if rows := seed_rows(pair.self_accuracies(averaged=True)):
            yield file_name("seeds", *names, ".tex"), tabular(SEED_HEADINGS, rows)
        if pair.panels:
            yield file_name("tau", *names, ".tex"), _tau(pair)


def _stitching(found: list[Study]) -> Iterator[tuple[str, ...]]:
    shown = varying(found)
    for study in found:
        for finding in findings(study):
            yield f"{study.front} → {study.end}", title(study, shown), *cells_of(finding)


def _tau(pair: PairSimilarity) -> str:
    found = pair.tau()
    rows = [
        (a.label, *(f"{found[a.name, b.name].tau:.2f}" for b in pair.panels)) for a in pair.panels
    ]
    return tabular(("τ", *(str(n) for n in range(1, len(rows) + 1))), [
        (f"{n}. {head}", *cells) for n, (head, *cells) in enumerate(rows, 1)
    ])  # fmt: skip


def tabular(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A booktabs table; the first column flush left, the others flush right."""
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in (heads, *rows)]
    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text with what LaTeX reads as a command written out, and a minus before a number."""
    found = "".join(_SPECIAL.get(letter, letter) for letter in text)
    return re.sub(r"^-(?=\d)", "$-$", found)
