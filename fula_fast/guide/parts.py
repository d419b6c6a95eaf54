"""The parts of the guide that are written from the package's own records, models and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import Normalisation, kernels, load, similarity, stages, stitch, sweep, with_input
from ..api import Stitched
from ..attacks.names import attacks, parse
from ..measures.registry import Measure, Needs, measures
from ..methods import methods
from ..models.families import DEFAULTS
from ..models.libraries import LIBRARIES
from ..pipelines.tools import list_sources
from ..report.glossary import columns
from ..reproduce import resolve, stitchbench
from ..reproduce.claims import Verdict, counted
from ..reproduce.recipe import load_recipe, recipe_names
from ..results import Results, Similarities
from ..study.protocol import PRESETS, Protocol
from ..study.spec_keys import TABLE, SpecKey, tables

_WIDE = 90
_QUOTED = re.compile(r"""(: |> )(["'])(.*?)\2(?=, |\)| = |$)""")
"""An annotation as `from __future__ import annotations` leaves it: a text."""
_NEEDS = {
    Needs.SITES: "Of a stitched model, site by site",
    Needs.STITCH: "Of a stitch",
    Needs.OUTPUTS: "Of two models' answers",
    Needs.MOMENTS: "Of second moments",
    Needs.PAIRS: "Of pairs of samples",
}


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = (heads, ["---"] * len(heads), *rows)
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(names: Iterable[str]) -> str:
    """Names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


def spec_part() -> str:
    """Every key of a spec, a table for each of its tables."""
    parts = []
    for name, keys in tables().items():
        acts = any(key.acts for key in keys)
        heads = ("key", "type", "default", "meaning", *["acts where"] * acts)
        rows = (_key_row(key, acts) for key in keys)
        parts.append(f"## {f'`[{name}]`' if name else 'The top'}\n\n{table(heads, rows)}")
    return "\n\n".join(parts)


def _key_row(key: SpecKey, acts: bool) -> list[str]:
    default = key.default if key.default in ("required", "unset", TABLE) else f"`{key.default}`"
    limits = f" ({key.range})" if key.range else ""
    return [f"`{key.name}`", key.type + limits, default, key.meaning, *[key.acts] * acts]


def presets_part() -> str:
    """The options in which the presets differ."""
    values = {name: preset.model_dump() for name, preset in PRESETS.items()}
    options = [o for o in Protocol.model_fields if o != "preset"]
    differ = [o for o in options if len({str(v[o]) for v in values.values()}) > 1]
    rows = ([f"`{o}`", *(v[o] for v in values.values())] for o in differ)
    return table(("option", *(f"`{name}`" for name in values)), rows)


def methods_part() -> str:
    """The methods' records."""
    rows = ([f"`{m.name}`", m.stitch, m.reads, m.careful] for m in methods())
    return table(("method", "the stitch is …", "reads as", "careful"), rows)


def measures_part() -> str:
    """The measures' records, by what they are computed from."""
    return "\n\n".join(
        f"### {title}\n\n{_measures_table(measures(needs))}" for needs, title in _NEEDS.items()
    )


def _measures_table(found: Sequence[Measure]) -> str:
    rows = ([f"`{m.name}`: {m.label}", _range(m), m.reads, m.careful, m.source] for m in found)
    return table(("measure", "range", "reads as", "careful", "source"), rows)


def _range(measure: Measure) -> str:
    return f"{measure.low:g} … {measure.high:g}; the same: {measure.best:g}"


def attacks_part() -> str:
    """The attacks' records."""
    pgd = parse("pgd-10")
    rows = [[f"`{a.name}`", a.reads, a.careful, f"{a.gradients:,}"] for a in attacks()]
    return table(
        ("attack", "is", "careful", "gradients"), [["`pgd-N`", pgd.reads, pgd.careful, "N"], *rows]
    )


def sources_part() -> str:
    """The sources of images."""
    rows = ([f"`{s.name}`", s.summary, code(s.options)] for s in list_sources())
    return table(("source", "what it is", "options"), rows)


def architectures_part() -> str:
    """The architectures, with their options."""
    own = ([f"`{n}`", code(f"{k} = {_toml(v)}" for k, v in o.items())] for n, o in DEFAULTS.items())
    others = (
        [f"`{name}:NAME`", f"those of the library; NAME is {library.kinds}"]
        for name, library in LIBRARIES.items()
    )
    return table(("model", "options and their defaults"), [*own, *others])


def _toml(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )


def experiments_part() -> str:
    """The papers' experiments."""
    recipes = map(load_recipe, recipe_names())
    return table(("name", "of", "title"), ([f"`{r.name}`", r.figure, r.title] for r in recipes))


def outcomes_part() -> str:
    """What the table of results says of each experiment's claims, and what was cut for it."""
    lines = []
    for (name, scale), found in stitchbench.outcomes().items():
        experiment = resolve(name, scale, Path())
        specs = [sweep.spec for sweep in experiment.sweeps]
        cells = [cell for sweep in experiment.sweeps for cell in sweep.plan().cells]
        robust = [s.evaluation for s in specs if s.evaluation.robust]
        lines.append(
            [
                f"`{name}`",
                *(_held([v for v in found if v.ours == ours]) for ours in (False, True)),
                str(len(cells) or "–"),
                _listed(d.width for s in specs for d in s.donors.values()),
                _listed(sweep.data.train_images for sweep in experiment.sweeps),
                str(len({c.seed for c in cells}) or "–"),
                str(len({(c.front_site, c.end_site) for c in cells}) or "–"),
                _listed(f"{e.robust}, {e.robust_images} images" for e in robust),
            ]
        )
    heads = (
        "experiment", "claims that hold", "own checks", "cells", "width", "images", "seeds",
        "pairs of sites", "attack",
    )  # fmt: skip
    return table(heads, lines)


def _held(found: Sequence[Verdict]) -> str:
    return "{} of {}".format(*counted(found)) if found else "–"


def _listed(values: Iterable[Any]) -> str:
    return "; ".join(map(str, dict.fromkeys(values))) or "–"


def columns_part() -> str:
    """The columns of a results table."""
    return table(("column", "meaning"), ([f"`{name}`", text] for name, text in columns()))


def kernels_part() -> str:
    """The kernels' own page from its first section on, one heading lower; files stand as names."""
    page = (Path(kernels.__file__).parent / "README.md").read_text(encoding="utf-8")
    inner = page[page.index("\n") :].partition("## How it is laid out")[0]
    return re.sub(r"\[(`[^`]+`)\]\([^)]*\)", r"\1", inner).strip()


def python_part() -> str:
    """The Python interface, from its docstrings."""
    functions = {f.__name__: f for f in (stages, with_input, stitch, sweep, similarity, load)}
    classes = {
        "Stitched": Stitched,
        "Results": Results,
        "Similarities": Similarities,
        "Normalisation": Normalisation,
    }
    return "\n\n".join(
        [*(_described(f"fula_fast.{n}", f) for n, f in functions.items()),
         *(_class(n, c) for n, c in classes.items())]
    )  # fmt: skip


def _described(name: str, thing: Any, level: str = "##") -> str:
    block = f"```text\n{name.rpartition('.')[2]}{_signature(thing)}\n```"
    return f"{level} `{name}`\n\n{block}\n\n{_prose(inspect.getdoc(thing))}"


def _signature(thing: Any) -> str:
    """As it stands in the source; a parameter a line where one line is too long."""
    whole = _QUOTED.sub(r"\1\3", str(inspect.signature(thing)))
    if len(whole) <= _WIDE:
        return whole
    inner, _, returned = whole.rpartition(") ->")
    parts = re.split(r", (?=[\w*]+(?::|=|,|$))", inner[1:])
    return "(\n    " + ",\n    ".join(parts) + f",\n) ->{returned}"


def _class(name: str, found: type) -> str:
    members = {n: m for n, m in vars(found).items() if not n.startswith("_")}
    methods = [_described(n, m, "###") for n, m in members.items() if inspect.isfunction(m)]
    facts = [f"- `{n}`: {_prose(m.__doc__)}" for n, m in members.items() if isinstance(m, property)]
    return "\n\n".join(
        [f"## `{name}`\n\n{_prose(inspect.getdoc(found))}", "\n".join(facts), *methods]
    )


def _prose(text: str | None) -> str:
    """A docstring as Markdown: indented examples stay blocks."""
    return inspect.cleandoc(text or "").replace("<", "&lt;")


PARTS: dict[str, Callable[[], str]] = {
    "spec": spec_part,
    "presets": presets_part,
    "methods": methods_part,
    "measures": measures_part,
    "attacks": attacks_part,
    "sources": sources_part,
    "architectures": architectures_part,
    "experiments": experiments_part,
    "outcomes": outcomes_part,
    "columns": columns_part,
    "kernels": kernels_part,
    "python": python_part,
}
"""What `<!-- here: NAME -->` becomes, by name."""
