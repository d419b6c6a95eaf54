"""What a similarity run will gather, and how much memory that takes: pure, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import FulaError
from ..measures.moment_memory import FLOAT64, WORK_BYTES, moments_bytes, pairs_bytes
from ..measures.registry import MAP_FEATURES, TOKEN_FEATURES, Features, Needs, measure
from .facts import DataFacts, DonorFacts, Shape
from .similarity_spec import LEVEL, SimilaritySpec
from .spec import Spec, load_spec
from .toml import Overrides, read_toml

Pairs = tuple[tuple[str, str], ...]
_FLOAT32 = 4
_KIND = {1: "vectors", 2: "tokens", 3: "maps"}


@dataclass(frozen=True)
class FeatureView:
    """How activations become matrices: words for maps and for tokens, and, for positions, the
    (height, width) to which maps are resized."""

    maps: Features
    tokens: Features
    size: tuple[int, int] | None = None

    def word(self, shape: Shape) -> str:
        """The word that acts on an activation of this shape; empty for vectors."""
        return {3: self.maps, 2: self.tokens}.get(len(shape), "")

    def matrix(self, shape: Shape) -> tuple[int, int]:
        """Rows per image and features of an activation (C, H, W), (T, D) or (D,)."""
        word = self.word(shape)
        if word == Features.POSITIONS:
            return prod(self.size or shape[1:]), shape[0]
        if word == Features.ALL:
            return shape
        if word == Features.FLAT:
            return 1, prod(shape)
        return 1, shape[0] if len(shape) == 3 else shape[-1]


@dataclass(frozen=True)
class SiteBlock:
    """Measures of features under one view: all front sites against these end sites (from 0)."""

    view: FeatureView
    end_sites: tuple[int, ...]
    measures: tuple[str, ...]
    rows: int

    @property
    def key(self) -> tuple[FeatureView, int]:
        """Blocks that are gathered together."""
        return self.view, self.rows

    def label(self, front: Sequence[Shape], end: Sequence[Shape]) -> str:
        """The words of the view that act on the two donors' sites."""
        words = [self.view.word(shape) for shape in (*front, *(end[j] for j in self.end_sites))]
        return "/".join(filter(None, dict.fromkeys(words))) or "vector"


def blocks(
    spec: SimilaritySpec, front: Sequence[Shape], end: Sequence[Shape], names: tuple[str, str]
) -> tuple[SiteBlock, ...]:
    """What is compared of two donors with these activations, a block for each view.

    Raises `FulaError` where two sites have different numbers of rows.
    """
    groups: dict[tuple[Features, Features], list[str]] = {}
    for name in spec.chosen(Needs.MOMENTS, Needs.PAIRS):
        groups.setdefault(spec.words(name), []).append(name)
    return tuple(
        SiteBlock(view, sites, tuple(chosen), _rows(view, front, end, sites, names))
        for words, chosen in groups.items()
        for view, sites in _views(words, end)
    )


def _views(
    words: tuple[Features, Features], end: Sequence[Shape]
) -> Iterator[tuple[FeatureView, tuple[int, ...]]]:
    """One view, or, for positions, one for each size of the end's maps: the front's are resized."""
    sizes = {shape[1:] for shape in end if len(shape) == 3}
    if words[0] != Features.POSITIONS or not sizes:
        yield FeatureView(*words), tuple(range(len(end)))
        return
    others = [j for j, shape in enumerate(end) if len(shape) != 3]
    for size in sorted(sizes, reverse=True):
        yield FeatureView(*words, size), tuple(j for j, s in enumerate(end) if s[1:] == size)
    if others:
        yield FeatureView(*words), tuple(others)


def _rows(
    view: FeatureView,
    front: Sequence[Shape],
    end: Sequence[Shape],
    end_sites: tuple[int, ...],
    names: tuple[str, str],
) -> int:
    """Rows per image, the same at all sites of a block."""
    sides = [(names[0], i, s) for i, s in enumerate(front)]
    sides += [(names[1], j, end[j]) for j in end_sites]
    first = sides[0]
    for other in sides:
        counts = [view.matrix(shape)[0] for _, _, shape in (first, other)]
        if counts[0] != counts[1]:
            words = " and ".join(sorted(filter(None, {view.word(s) for *_, s in (first, other)})))
            raise FulaError(
                f"[similarity] features {words} give {counts[0]} rows per image at site "
                f"{first[1] + 1} of '{first[0]}' and {counts[1]} at site {other[1] + 1} of "
                f"'{other[0]}', and only equal rows compare; use features = 'mean' there"
            )
    return view.matrix(first[2])[0]


def of_moments(block: SiteBlock) -> tuple[str, ...]:
    """The block's measures of second moments."""
    return tuple(name for name in block.measures if measure(name).needs is Needs.MOMENTS)


@dataclass(frozen=True)
class PlannedSimilarity:
    """`pairs` of donors; `images`, and those of them for pairs and chance; predicted bytes."""

    pairs: Pairs
    measures: tuple[str, ...]
    images: int
    samples: int
    memory: int

    @property
    def donors(self) -> tuple[str, ...]:
        """Every donor once."""
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlannedSimilarity:
        """The inverse of `dataclasses.asdict`, through JSON."""
        pairs = tuple((front, end) for front, end in values["pairs"])
        counts = {name: int(values[name]) for name in ("images", "samples", "memory")}
        return cls(pairs, tuple(values["measures"]), **counts)


def plan_similarity(
    spec: Spec, data: DataFacts, facts: Mapping[str, DonorFacts], budget: int | None
) -> PlannedSimilarity:
    """The plan of a spec's `[similarity]` table; `facts`: of every donor in it.

    Raises `FulaError` for measures that the donors or the images do not allow, and where the run
    would take more than `budget` bytes.
    """
    asked = spec.asked_similarity
    images = data.train_images if asked.split == "train" else data.test_images
    samples = min(asked.samples, images)
    for name in asked.measures:
        if samples < (least := measure(name).least):
            raise FulaError(f"[similarity] {samples} images: {name} needs at least {least}")
    _check_words(asked, facts.values())
    _check_classes(asked, data, facts)
    need = predicted_bytes(asked, facts, images, spec.evaluation.batch_size)
    if budget is not None and need > budget:
        raise FulaError(
            f"[similarity] needs {need / 2**30:.2f} GiB ({asked.pairs and len(asked.pairs)} pairs "
            f"of donors, {images} images, {samples} samples), but the budget is "
            f"{budget / 2**30:.2f} GiB; lower samples, use features = 'mean', leave out measures "
            "or donors, or raise --memory"
        )
    return PlannedSimilarity(asked.pairs, asked.measures, images, samples, need)


def coarse_null(spec: SimilaritySpec, facts: Mapping[str, DonorFacts]) -> tuple[str, ...]:
    """A note where there are too few permutations for Holm's correction to find anything."""
    cells = max(facts[f].num_sites * facts[e].num_sites for f, e in spec.pairs)
    least = round(cells / (1 - LEVEL)) - 1
    if not spec.null or spec.null >= least:
        return ()
    return (
        f"null = {spec.null} permutations: Holm's p (p_holm) of {cells} cells cannot fall below "
        f"{min(1, cells / (spec.null + 1)):.2f}; null = {least} gives it room to reach "
        f"{1 - LEVEL:.2f}; p, p_best and p_family, which the report marks, are not concerned",
    )


def _check_words(spec: SimilaritySpec, facts: Iterable[DonorFacts]) -> None:
    """Every word of the spec must act somewhere: on a map or on a token."""
    kinds = {_KIND[len(shape)] for each in facts for shape in each.shapes}
    valid = {w for k, ws in (("maps", MAP_FEATURES), ("tokens", TOKEN_FEATURES)) if k in kinds
             for w in ws}  # fmt: skip
    for key, words in spec.features.items():
        for word in words:
            if word not in valid:
                known = ", ".join(sorted(valid)) or "none"
                raise FulaError(
                    f"[similarity] features {key} = '{word}' acts on no site of these donors, "
                    f"which have {' and '.join(sorted(kinds))}; possible: {known}"
                )


def _check_classes(spec: SimilaritySpec, data: DataFacts, facts: Mapping[str, DonorFacts]) -> None:
    if not (names := list(spec.chosen(Needs.OUTPUTS))):
        return
    for name in dict.fromkeys(n for pair in spec.pairs for n in pair):
        if not facts[name].classifies:
            raise FulaError(
                f"[similarity] {', '.join(names)} compare answers, and donor '{name}' gives none; "
                "leave those measures out, or set head = 'linear-probe' in its [donors] table"
            )
        if facts[name].classes != data.classes:
            raise FulaError(
                f"[similarity] {', '.join(names)} compare answers, but donor '{name}' has "
                f"{facts[name].classes} classes and the images {data.classes}; leave those "
                "measures out, or compare donors of one task"
            )


def predicted_bytes(
    spec: SimilaritySpec, facts: Mapping[str, DonorFacts], images: int, batch: int
) -> int:
    """The peak: donors, one batch of all of them, what is gathered, and the dearest comparison."""
    samples = min(spec.samples, images)
    names = tuple(dict.fromkeys(name for pair in spec.pairs for name in pair))
    shapes = {name: facts[name].shapes for name in names}
    of_pairs = {
        (f, e): blocks(spec, shapes[f], shapes[e], (f, e)) for f, e in dict.fromkeys(spec.pairs)
    }
    weights = _FLOAT32 * sum(facts[name].weights for name in names)
    passing = 3 * _FLOAT32 * max(max(map(prod, shapes[n])) for n in names)
    gathered = 0
    for key in dict.fromkeys(block.key for found in of_pairs.values() for block in found):
        users = {pair: b for pair, found in of_pairs.items() for b in found if b.key == key}
        moments = any(of_moments(block) for block in users.values())
        gathered += _view_bytes(key, list(users), shapes, images * moments, samples, batch)
    logits = 0
    if spec.chosen(Needs.OUTPUTS):
        logits = 4 * FLOAT64 * images * sum(facts[name].classes for name in names)
    work = max(
        (_work_bytes(block, shapes[f], shapes[e], samples)
         for (f, e), found in of_pairs.items() for block in found),
        default=0,
    )  # fmt: skip
    return weights + batch * passing + gathered + logits + work + WORK_BYTES


def _view_bytes(
    key: tuple[FeatureView, int],
    users: Sequence[tuple[str, str]],
    shapes: Mapping[str, Sequence[Shape]],
    images: int,
    samples: int,
    batch: int,
) -> int:
    """One batch's matrices, the rows kept of the samples, and the moments of `images` (0: none)."""
    view, rows = key
    donors = dict.fromkeys(name for pair in users for name in pair)
    sizes = {name: [view.matrix(shape) for shape in shapes[name]] for name in donors}
    numbers = sum(rows * width for found in sizes.values() for _, width in found)
    need = numbers * (3 * FLOAT64 * batch + _FLOAT32 * samples)
    if images:
        widths = {name: [width for _, width in found] for name, found in sizes.items()}
        need += moments_bytes(widths, list(users), images * rows)
    return need


def _work_bytes(
    block: SiteBlock, front: Sequence[Shape], end: Sequence[Shape], samples: int
) -> int:
    """The dearest of the block's comparisons, which are prepared one after the other."""
    rows = samples * block.rows
    sides = len(front) + len(block.end_sites)
    each = [pairs_bytes([measure(name)], sides, rows) for name in block.measures]
    if of_moments(block):
        widths = {
            "front": [block.view.matrix(shape)[1] for shape in front],
            "end": [block.view.matrix(end[j])[1] for j in block.end_sites],
        }
        each.append(moments_bytes(widths, [("front", "end")], rows, "samples"))
    return max(each)


def similarity_spec(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Spec:
    """A spec for similarity alone: its `[similarity]` table, or the usual one, and no grid but for
    the pairs that it names."""
    table = dict(source) if isinstance(source, Mapping) else read_toml(source)
    table.setdefault("similarity", {})
    return load_spec(table, overrides).model_copy(update={"grid": None})
