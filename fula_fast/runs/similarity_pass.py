"""The `[similarity]` table of a run: one pass over the images, then pair by pair of donors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import pipelines
from ..device.precision import EXACT, PLAIN, arithmetic
from ..errors import not_none
from ..measures.comparison import Draws, Judgement, Scores, compare, judged
from ..measures.matrices import Sides, of_moments
from ..measures.moments import Moments
from ..measures.pair import effective_rank
from ..measures.registry import Needs, measure
from ..measures.sampling import subset
from ..models import Staged
from ..models.copies import private_copy
from ..models.preparation import prepared
from ..pipelines import ImageSet, Input
from ..store import Store
from ..store.similarity_table import check_same, missing_pairs, planned_pairs, write_pair
from ..study.similarity_plan import SiteBlock, blocks
from ..study.similarity_plan import of_moments as names_of_moments
from ..study.similarity_spec import LEVEL, SimilaritySpec
from .gathering import Gathered, SiteBlocks, gather
from .workbench import Workbench

Pair = tuple[str, str]


def run_similarity(bench: Workbench, store: Store) -> None:
    """Compute the pairs of donors that the run's folder lacks.

    Donors run in float32 (float64 where the run's precision is fp64): narrower activations would be
    compared with their own rounding. Raises `FulaError` where finished pairs are of other donors or
    images, and for activations that are not finite.
    """
    spec, images = bench.spec.asked_similarity, _images(bench)
    for pair in planned_pairs(store):
        check_same(store, pair, _facts(bench, pair, images))
    if not (todo := missing_pairs(store)):
        return
    names = tuple(dict.fromkeys(sum(todo, ())))
    shared = _shared(bench, names)
    donors = {n: _donor(bench, n, shared is None) for n in names}
    wanted = {(f, e): blocks(spec, donors[f].site_shapes, donors[e].site_shapes, (f, e))
              for f, e in todo}  # fmt: skip
    exact = PLAIN if bench.plan.precision != EXACT else EXACT
    with arithmetic(exact), torch.no_grad():
        gathered = _gathered(bench, donors, images, wanted, shared or Input())
        for number, pair in enumerate(todo, 1):
            names = " and ".join(dict.fromkeys(pair))
            bench.progress.note(f"similarity {number} of {len(todo)}: {names}")
            rows = list(_rows(spec, pair, donors, gathered, wanted[pair]))
            write_pair(store, pair, _facts(bench, pair, images), rows)


def _images(bench: Workbench) -> ImageSet:
    source = bench.source(bench.spec.data)
    return source.train if bench.spec.asked_similarity.split == "train" else source.test


def _facts(bench: Workbench, pair: Pair, images: ImageSet) -> dict[str, str]:
    """What decides a pair's numbers: the order of images and labels is part of their hash."""
    hook = bench.spec.base_protocol.hook
    donors = {f"donor '{name}'": bench.donor(name, hook).content_hash for name in pair}
    return donors | {"the data": images.content_hash}


def _shared(bench: Workbench, names: Sequence[str]) -> Input | None:
    """The one input of all donors; None where each has its own."""
    inputs = {bench.input(name) for name in names}
    return next(iter(inputs)) if len(inputs) == 1 else None


def _donor(bench: Workbench, name: str, prepares: bool) -> Staged:
    """A copy of a donor, which prepares its images itself or not."""
    donor = private_copy(bench.donor(name, bench.spec.base_protocol.hook).staged)
    if prepares:
        donor = prepared(donor, bench.input(name), bench.source(bench.spec.data).image_shape)
    dtype = torch.float64 if bench.plan.precision == EXACT else torch.float32
    return donor.to(bench.device, dtype).eval()


def _gathered(
    bench: Workbench,
    donors: Mapping[str, Staged],
    images: ImageSet,
    wanted: SiteBlocks,
    given: Input,
) -> Gathered:
    spec = bench.spec.asked_similarity
    batches = pipelines.evaluation_batches(
        images, bench.spec.evaluation.batch_size, bench.device, **vars(given)
    )
    samples = subset(len(images), spec.samples, spec.seed)
    outputs = bool(spec.chosen(Needs.OUTPUTS))
    return gather(
        donors, batches, len(images), samples, wanted, outputs=outputs, device=bench.device
    )


def _rows(
    spec: SimilaritySpec,
    pair: Pair,
    donors: Mapping[str, Staged],
    gathered: Gathered,
    wanted: Sequence[SiteBlock],
) -> Iterator[dict[str, Any]]:
    """The pair's rows, measure by measure in the spec's order."""
    draws = Draws.of(len(gathered.samples), spec.null, spec.intervals, spec.seed)
    shapes = [donors[name].site_shapes for name in pair]
    found = _outputs(spec, pair, gathered, draws) | _features(spec, pair, gathered, wanted, draws)
    for name in spec.measures:
        matrix, scores = found[name]
        mine = [block for block in wanted if name in block.measures]
        label = mine[0].label(*shapes) if mine else "outputs"
        counts = {"n": len(gathered.labels), "samples": len(gathered.samples)}
        if measure(name).needs is Needs.PAIRS:
            counts["n"] = counts["samples"]
        told = {"front": pair[0], "end": pair[1], "measure": name, "features": label} | counts
        verdict = judged(measure(name), scores, LEVEL)
        ranks = _ranks(pair, gathered, [b for b in mine if b.key in gathered.moments])
        for (i, j), value in np.ndenumerate(matrix):
            sites = {"front_site": i + 1, "end_site": j + 1} if mine else {}
            more = ranks.get((i, j), {})
            yield told | sites | {"value": float(value)} | _judged(verdict, i, j) | more


def _judged(verdict: Judgement, i: int, j: int) -> dict[str, float]:
    """The verdict's columns of one cell; none for what was not drawn."""
    found: dict[str, float] = {}
    if verdict.chance is not None:
        found["p"] = verdict.chance.p[i, j]
        found["calibrated"] = verdict.chance.calibrated[i, j]
        found["p_holm"] = not_none(verdict.holm)[i, j]
        found["p_family"] = not_none(verdict.family)[i, j]
        found["p_best"] = float(not_none(verdict.best).p)
    if verdict.interval is not None:
        found |= {"low": verdict.interval.low[i, j], "high": verdict.interval.high[i, j]}
    return {name: float(value) for name, value in found.items()}


Found = dict[str, tuple[np.ndarray, Scores]]
"""By measure: its values (I, J), and its scores on the samples."""


def _features(
    spec: SimilaritySpec, pair: Pair, gathered: Gathered, wanted: Sequence[SiteBlock], draws: Draws
) -> Found:
    """Measures of features; a measure's blocks (of end sites) are put together again."""
    parts: dict[str, list[tuple[SiteBlock, np.ndarray, Scores]]] = {}
    for block in wanted:
        for name, found in _block(spec, pair, gathered, block, draws).items():
            parts.setdefault(name, []).append((block, *found))
    joined: Found = {}
    for name, several in parts.items():
        sites = [j for block, *_ in several for j in block.end_sites]
        back = np.argsort(sites)
        values = np.concatenate([values for _, values, _ in several], axis=1)
        scores = Scores.joined([scores for *_, scores in several])
        joined[name] = values[:, back], scores.taken(back)
    return joined


def _block(
    spec: SimilaritySpec, pair: Pair, gathered: Gathered, block: SiteBlock, draws: Draws
) -> Found:
    front, end = (gathered.kept[block.key, name] for name in pair)
    end = end if len(block.end_sites) == len(end) else [end[j] for j in block.end_sites]
    choice = {name: spec.options.get(name, {}) for name in block.measures}
    scores = compare(front, end, choice, draws, rows=block.rows)
    values = {name: found.observed for name, found in scores.items()}
    if names := names_of_moments(block):
        moments = gathered.moments[block.key]
        exact = of_moments(moments, *pair, {n: choice[n] for n in names}, block.end_sites)
        values |= {name: found.numpy() for name, found in exact.items()}
    return {name: (values[name], found) for name, found in scores.items()}


def _outputs(spec: SimilaritySpec, pair: Pair, gathered: Gathered, draws: Draws) -> Found:
    """Measures of outputs, one cell each: of all images, and of the samples."""
    if not (choice := spec.chosen(Needs.OUTPUTS)):
        return {}
    taken = torch.from_numpy(gathered.samples)
    whole = [Sides([gathered.outputs(name)], choice) for name in pair]
    some = [[gathered.outputs(name, taken)] for name in pair]
    values, scores = whole[0].against(whole[1]), compare(some[0], some[1], choice, draws)
    return {name: (values[name].numpy(), scores[name]) for name in choice}


def _ranks(
    pair: Pair, gathered: Gathered, mine: Sequence[SiteBlock]
) -> dict[tuple[int, int], dict[str, float]]:
    """The effective ranks of both layers, by site pair, where second moments were gathered."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for block in mine:
        moments = gathered.moments[block.key]
        front, end = (_effective(moments, name) for name in pair)
        for i, rank in enumerate(front):
            for j in block.end_sites:
                found[i, j] = {"front_effective_rank": rank, "end_effective_rank": end[j]}
    return found


def _effective(moments: Moments, name: str) -> list[float]:
    sites = range(moments.sites(name))
    return [float(effective_rank(moments.side((name, site)))) for site in sites]
