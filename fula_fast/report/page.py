"""`report.html`: one file with its pictures inside, readable on paper and without a network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tomli_w
from matplotlib.figure import Figure

from .. import __version__
from ..files.atomic import folder as made
from ..files.atomic import replacing
from ..store import COLUMNS, Store
from ..store.similarity_table import MEANINGS, planned_pairs, similarity_rows
from ..study.cell import digest
from .explorer import explorer
from .glossary import glossary
from .heat_map import heat_map
from .inputs import inputs_in_words
from .over_seeds import SEED_HEADINGS, accuracies, seed_rows
from .similarity_cells import SIMILARITY_HEADINGS, PairSimilarity, pair_similarities, summary_rows
from .similarity_plots import similarity_maps, similarity_profile, tau_map
from .stitching_plot import stitching_plot
from .studies import METRICS, Row, Study, studies, title, varying
from .style import label, look, rendered, write_files
from .summary import HEADINGS, cells_of, findings, percent

MOST_ROWS = 4
"""Settings in one stitching plot; further ones get further figures."""

PAGE_ROWS = 100
"""Of the table of every number, in one page of it."""

_PARTS = ("parts.html.j2", "explorer.html.j2")

HEAT_METRICS = ("accuracy", "robust_accuracy", "agreement_soft")


@dataclass(frozen=True)
class Picture:
    """A figure in the page: SVG as a data URI, its PNG's name in `plots/`, and its caption."""

    source: str
    png: str
    caption: str


@dataclass(frozen=True)
class Live:
    """A run that goes on: what it is doing in lines of text, and after how many seconds a browser
    reads the page again."""

    lines: Sequence[str]
    seconds: int


def write_report(
    run_folder: str | Path,
    live: Live | None = None,
    *,
    interactive: bool = False,
    style: str | Path | None = None,
) -> Path:
    """Write `report.html` and `plots/` into a run's folder, also for an unfinished run; `live`:
    while it goes on; `interactive`: with a part to choose, point and compare in, which makes the
    page five megabytes larger; `style`: of the plots, as `look` takes it.

    Returns the path of the page. Raises `FulaError` where there is no run, or no writable folder,
    for an unknown style, and for an interactive one without plotly.
    """
    drawing = look(style)
    store = Store.open(run_folder)
    rows = store.rows()
    axes = tuple(store.spec.get("grid", {}).get("axes", {}))
    found = studies(rows, axes)
    pairs = pair_similarities(similarity_rows(store), found)
    explored = explorer(rows, found, pairs) if interactive else None
    plots = _fresh(store.folder / "plots")
    with drawing:
        stitching = _stitching_plots(found, plots)
        cross_layer = _heat_maps(found, plots)
        compared = _similarity(pairs, plots)
    page = template("report.html.j2").render(
        name=store.spec.get("name", store.folder.name),
        version=__version__,
        live=live,
        explorer=explored,
        page_rows=PAGE_ROWS,
        progress=_progress(store, rows),
        findings=_findings(found),
        headings=HEADINGS,
        stitching=stitching,
        cross_layer=cross_layer,
        compared=compared,
        similarity_missing=len(planned_pairs(store)) - len(compared),
        seed_headings=SEED_HEADINGS,
        similarity_headings=SIMILARITY_HEADINGS,
        similarity_glossary=MEANINGS.items() if compared else (),
        failed=[row for row in rows if row["status"] == "failed"],
        table=(table := _table(rows)),
        glossary=glossary(table["all"]),
        donors=_donors(rows, inputs_in_words(store.spec)),
        times=_times(rows),
        machine=_machine(store, rows),
        notes=store.plan.get("notes", ()),
        spec=tomli_w.dumps(_without_null(store.spec)),
    )
    path = store.folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def template(name: str, package: str = "fula_fast.report") -> jinja2.Template:
    """A page's template in `package`; it may import this package's parts."""
    places = dict.fromkeys(_PARTS, "fula_fast.report") | {name: package}
    texts = {n: files(place).joinpath(n).read_text("utf-8") for n, place in places.items()}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _fresh(plots: Path) -> Path:
    """The folder of plots, without those of an earlier report."""
    made(plots)
    for kind in ("stitching", "cross-layer", "similarity"):
        for old in (*plots.glob(f"{kind}-*.svg"), *plots.glob(f"{kind}-*.png")):
            old.unlink(missing_ok=True)
    return plots


def _stitching_plots(found: list[Study], plots: Path) -> list[Picture]:
    shown, pictures = varying(found), []
    pairs: dict[tuple[str, str], list[Study]] = {}
    for study in found:
        if study.same_site() and study.metrics():
            pairs.setdefault((study.front, study.end), []).append(study)
    for pair, of_pair in pairs.items():
        for start in range(0, len(of_pair), MOST_ROWS):
            part = of_pair[start : start + MOST_ROWS]
            drawn = stitching_plot(part, shown)
            name = file_name("stitching", pair, start // MOST_ROWS, len(of_pair))
            pictures.append(kept(drawn, plots / name, _stitching_caption(part)))
    return pictures


def _stitching_caption(part: list[Study]) -> str:
    seeds = max(s.curve(m, k).seeds for s in part for m in s.methods for k in s.metrics())
    band = f"Lines are means of {seeds} seeds, bands reach from the lowest to the highest. "
    return (
        f"Stitching plot, front {part[0].front}, end {part[0].end}: each point is a model stitched "
        "at corresponding sites. The open points are the whole end model (left) and the whole "
        f"front model (right). {band if seeds > 1 else 'One seed per point. '}"
        "A gap is a cell that failed or is missing."
    )


def _heat_maps(found: list[Study], plots: Path) -> list[Picture]:
    shown, pictures = varying(found), []
    for number, study in enumerate(s for s in found if s.cross_layer):
        for metric in [m for m in HEAT_METRICS if m in study.metrics()]:
            name = file_name(f"cross-layer-{metric}", (study.front, study.end), number, 2)
            drawn = heat_map(study, metric, shown)
            pictures.append(kept(drawn, plots / name, _heat_caption(study, metric)))
    return pictures


def _similarity(pairs: list[PairSimilarity], plots: Path) -> list[dict[str, Any]]:
    """For every pair of donors that was compared: its table and its pictures."""
    drawings = (similarity_maps, _MAPS), (similarity_profile, _PROFILE), (tau_map, _TAU)
    sections = []
    for number, pair in enumerate(pairs):
        names = f"{pair.front} → {pair.end}"
        pictures = []
        for draw, (kind, words) in drawings if pair.panels else ():
            path = plots / file_name(kind, (pair.front, pair.end), number, len(pairs))
            pictures.append(kept(draw(pair), path, f"{names}: {words}"))
        over = seed_rows(pair.self_accuracies(averaged=True))
        sections.append(
            {"title": names, "rows": summary_rows(pair), "pictures": pictures, "seeds": over}
        )
    return sections


_MAPS = (
    "similarity-maps",
    "every site of the front (rows) against every site of the end (columns), each measure with "
    "its own colours: bright is similar. Marked in the corner: not above chance (p > 0.05 by "
    "permutation, corrected for all cells of the matrix). Framed: same-site; bold: the row's most "
    "similar. Self-Accuracy as in the table; best: p of the most similar cell against the most "
    "similar cell of every permutation.",
)
_PROFILE = (
    "similarity-profile",
    "corresponding sites over depth. Bands: 95 % intervals, of measures over images, where the "
    "spec asks for them, of stitching over seeds, where there are several; a measure's bias is "
    "taken out of them, so where it is large its value lies outside. "
    "Open points: not above chance. Axes of distances point down, so that up is similar.",
)
_TAU = (
    "similarity-tau",
    "Kendall's τ-b between measures over all site pairs, larger for more similar in every "
    "measure: 1 where two rank the pairs alike, 0 where they share nothing.",
)


def _heat_caption(study: Study, metric: str) -> str:
    seeds = len({(row.get("seed"), row.get("data_seed")) for row in study.rows})
    return (
        f"{METRICS[metric]} of every front site (rows, {study.front}) into every end site "
        f"(columns, {study.end}){f', mean of {seeds} seeds' if seeds > 1 else ''}. Framed: "
        "same-site; bold: the row's largest. Self-Accuracy: how often a layer is most similar to "
        "itself, per row; in parentheses for (M + Mᵀ)/2; ties share their credit."
    )


def file_name(
    kind: str, pair: tuple[str, str], number: int, count: int, suffix: str = ".svg"
) -> str:
    """A file's name for a pair of donors, numbered where there are several of its kind."""
    names = [name if len(name) < 60 else f"{name[:50]}-{digest(name)[:8]}" for name in pair]
    text = "-".join((kind, *names, *([str(number + 1)] if count > 1 else [])))
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text) + suffix


def picture(path: Path, caption: str) -> Picture:
    """A saved SVG or PNG as a picture of the page."""
    return _picture(path, path.read_bytes(), caption)


def kept(drawn: Figure, path: Path, caption: str) -> Picture:
    """A figure, saved, as a picture of the page. The file is not read back: another report of the
    same run may have removed it already."""
    content = rendered(drawn)
    return _picture(write_files(content, path), content[".svg"], caption)


def _picture(path: Path, content: bytes, caption: str) -> Picture:
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    data = base64.b64encode(content).decode()
    return Picture(f"data:image/{kind};base64,{data}", path.with_suffix(".png").name, caption)


def _progress(store: Store, rows: list[Row]) -> dict[str, int]:
    planned, ok = len(store.planned), sum(row["status"] == "ok" for row in rows)
    counts = {"planned": planned, "ok": ok, "failed": len(rows) - ok}
    return counts | {"missing": planned - len(rows)}


def _findings(found: list[Study]) -> list[dict[str, Any]]:
    shown = varying(found)
    return [
        {
            "title": f"{study.front} → {study.end}",
            "setting": title(study, shown),
            "rows": [(*cells_of(f), _both(f.self_accuracy)) for f in findings(study)],
            "seeds": seed_rows(accuracies(study)),
        }
        for study in found
    ]


def _both(scores: tuple[float, float] | None) -> str:
    return "{:.0%} ({:.0%})".format(*scores) if scores else "–"


def _table(rows: list[Row]) -> dict[str, Any]:
    """Every number: columns that vary as a table, those equal in all rows once above it."""
    extra = sorted({name for row in rows for name in row} - set(COLUMNS))
    names = [n for n in (*COLUMNS, *extra) if any(row.get(n) is not None for row in rows)]
    same = {n: rows[0].get(n) for n in names if _constant(rows, n)}
    names = [n for n in names if n not in same and n != "error"]  # errors have a table of their own
    return {
        "all": [*same, *names],
        "names": names,
        "numeric": [all(isinstance(row.get(n), _NUMBER) for row in rows) for n in names],
        "rows": [[_shown(row.get(name)) for name in names] for row in rows],
        "same": [(name, _shown(value)) for name, value in same.items()],
    }


_NUMBER = (int, float, type(None))


def _constant(rows: list[Row], name: str) -> bool:
    return len(rows) > 1 and name != "cell" and len({str(row.get(name)) for row in rows}) == 1


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _donors(rows: list[Row], inputs: Mapping[str, str]) -> list[tuple[str, ...]]:
    """(name, sites, accuracy, input, content hash) of every donor that a row names."""
    donors: dict[str, tuple[str, ...]] = {}
    for row in rows:
        for side in ("front", "end"):
            accuracy = row.get(f"{side}_accuracy")
            if row["status"] == "ok" and row[side] not in donors:
                donors[row[side]] = (
                    row[side],
                    _shown(row.get(f"{side}_sites")),
                    percent(np.nan if accuracy is None else accuracy),
                    inputs.get(row[side], ""),
                    row.get(f"{side}_hash") or "",
                )
    return list(donors.values())


def _times(rows: list[Row]) -> list[tuple[str, int, str, str]]:
    """(method, cells, total and median seconds of training) of the `ok` rows."""
    seconds: dict[str, list[float]] = {}
    for row in rows:
        if row["status"] == "ok" and row.get("train_seconds") is not None:
            seconds.setdefault(label(row["method"]), []).append(row["train_seconds"])
    return [(m, len(s), f"{sum(s):.1f}", f"{np.median(s):.3g}") for m, s in seconds.items()]


_MACHINE = ("device", "precision", "engine_mode")


def _machine(store: Store, rows: list[Row]) -> list[tuple[str, str]]:
    """Versions and hardware: from the rows, and from the notes of every launch."""
    names = sorted({n for row in rows for n in row if n.startswith("version_")})
    facts = [(n.removeprefix("version_"), _values(rows, n)) for n in (*_MACHINE, *names)]
    launches = store.launches()
    facts.append(("launches", str(len(launches))))
    return [fact for fact in facts if fact[1]] + list(_flat(launches[-1] if launches else {}))


def _values(rows: list[Row], name: str) -> str:
    return ", ".join(dict.fromkeys(str(row[name]) for row in rows if row.get(name)))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _shown(item)


def _without_null(value: Any) -> Any:
    """TOML has no null: an unset key is left out."""
    if isinstance(value, Mapping):
        return {k: _without_null(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return ["none" if v is None else _without_null(v) for v in value]
    return value
