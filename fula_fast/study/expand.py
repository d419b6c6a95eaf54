"""From a spec to its cells: every combination of the grid's lists, checked, equal ones merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from ..attacks.names import parse
from ..errors import FulaError
from ..measures.registry import OF_LABELS, Needs, measure
from ..methods import method
from ..methods.weightings import term_weights
from ..models.labels import check_answers, no_answers_for, no_gradient_for, no_labels_for
from .cell import digest
from .cells import NO_CELLS, Cells, Treatment, Words
from .donor_spec import ShortcutSpec
from .facts import DataFacts, DonorFacts, network_shape
from .grid_blocks import Axes, GridBlock, SitePairs, columns_of
from .grid_methods import Objective, objectives
from .identities import Identities
from .merging import merge
from .protocol import Protocol
from .site_names import site_number
from .spec import Spec

FactsOf = Callable[[str, str], DonorFacts]
"""Facts of a donor by name and hook."""


def same_sites(front_sites: int, end_sites: int) -> tuple[tuple[int, int], ...]:
    """For each end site the front site at the same depth: a rounded linear spacing, halves up.

    >>> same_sites(9, 5)
    ((1, 1), (3, 2), (5, 3), (7, 4), (9, 5))
    """
    if end_sites == 1:
        return ((front_sites, 1),)
    gaps = end_sites - 1
    return tuple(
        (1 + (2 * j * (front_sites - 1) + gaps) // (2 * gaps), j + 1) for j in range(end_sites)
    )


def site_pairs(sites: Any, front: DonorFacts, end: DonorFacts) -> tuple[tuple[int, int], ...]:
    """The grid's [front, end] sites for one pair of donors; out of range raises `FulaError`."""
    same = same_sites(front.num_sites, end.num_sites)
    if sites == "same":
        return same
    if sites == "all-pairs":
        return tuple(product(range(1, front.num_sites + 1), range(1, end.num_sites + 1)))
    pairs = []
    for given in sites:
        j = site_number(given[-1], end.names, f"[grid] sites: end '{end.name}'")
        if len(given) == 1:
            pairs.append(same[j - 1])
        else:
            pairs.append(
                (site_number(given[0], front.names, f"[grid] sites: front '{front.name}'"), j)
            )
    return tuple(dict.fromkeys(pairs))


def expand(spec: Spec, data: DataFacts, facts_of: FactsOf) -> tuple[Cells, tuple[str, ...]]:
    """The grid's cells, each once, and a note for every kind of cell that was merged.

    Raises `FulaError` for sites out of range and for combinations that mean nothing.
    """
    if not data.labelled:
        _check_no_labels_needed(spec)
    if spec.grid is None:
        return NO_CELLS, ()
    treatments = _Treatments(spec)
    blocks = list(_blocks(spec, data, facts_of, treatments))
    words, axes = _named(spec, treatments.found)
    recipes = [digest(spec.donors[name].recipe_identity()) for name in words.donors]
    identities = Identities(words, axes, recipes, digest(spec.data.identity()), data.classes)
    digests = np.concatenate([identities.of(block) for block in blocks])
    return merge(words, columns_of(blocks, axes), digests)


def _named(spec: Spec, treatments: Sequence[Treatment]) -> tuple[Words, Axes]:
    """The grid's values, and its axes as positions in them."""
    grid = spec.asked_grid
    words = Words(
        tuple(spec.donors), tuple(treatments),
        tuple(dict.fromkeys(grid.alpha)), tuple(dict.fromkeys(grid.shortcut)),
        tuple(dict.fromkeys(grid.subset)),
    )  # fmt: skip
    alpha = tuple(map(words.alpha.index, grid.alpha))
    shortcut = tuple(map(words.shortcut.index, grid.shortcut))
    subset = tuple(map(words.subset.index, grid.subset))
    seeds = tuple((s, d) for s in grid.seeds for d in grid.data_seeds or (s,))
    return words, Axes(alpha, shortcut, subset, seeds)


def _blocks(
    spec: Spec, data: DataFacts, facts_of: FactsOf, treatments: _Treatments
) -> Iterator[GridBlock]:
    protocols, places = spec.protocols(), {name: k for k, name in enumerate(spec.donors)}
    _check_data(spec, data, protocols)
    layouts: dict[Any, SitePairs] = {}
    for names in spec.asked_grid.donor_pairs():
        for number, protocol in enumerate(protocols):
            front, end = (facts_of(name, protocol.hook) for name in names)
            _check_pair(spec, data, front, end, protocol)
            form = _form(front), _form(end)
            if form not in layouts:
                layouts[form] = _layout(spec, front, end)
            layout = layouts[form]
            how = tuple(treatments.at(number, protocol, terms) for terms in layout.depths)
            yield GridBlock(places[names[0]], places[names[1]], layout, how)


def _form(donor: DonorFacts) -> tuple[Any, ...]:
    """What of a donor its sites depend on."""
    return donor.names, donor.shapes


def _layout(spec: Spec, front: DonorFacts, end: DonorFacts) -> SitePairs:
    pairs = site_pairs(spec.asked_grid.sites, front, end)
    like = [alike(front.shapes[i - 1], end.shapes[j - 1]) for i, j in pairs]
    if not all(like):
        _check_dm(spec, front, end, pairs[like.index(False)])
    terms = [end.num_sites + 1 - j for _, j in pairs]
    depths = tuple(dict.fromkeys(terms))
    return SitePairs(
        np.array(pairs), np.array(like), depths, np.array([depths.index(t) for t in terms])
    )


class _Treatments:
    """The grid's treatments, each once: `found`; by protocol and number of terms: `at`."""

    def __init__(self, spec: Spec) -> None:
        self.asked, self.weightings = (
            objectives(spec.asked_grid.methods),
            spec.asked_grid.weightings,
        )
        self.found: list[Treatment] = []
        self._place: dict[tuple[Any, ...], int] = {}
        self._known: dict[tuple[int, int], tuple[int, ...]] = {}

    def at(self, number: int, protocol: Protocol, terms: int) -> tuple[int, ...]:
        """Positions of all treatments under the protocol of a number, at a site with so many terms
        behind it."""
        if (number, terms) not in self._known:
            variants = (
                asked.at(weighted, terms)
                for asked in self.asked
                for weighted in _weighted(protocol, asked, self.weightings, terms)
            )
            self._known[number, terms] = tuple(self._placed(number, how) for how in variants)
        return self._known[number, terms]

    def _placed(self, number: int, how: Treatment) -> int:
        key = number, how.method, tuple(how.objective.items()), how.protocol.weighting, how.combine
        key += tuple((s.weighting, s.epochs, *s.objective.items()) for s in how.stages)
        if key not in self._place:
            self._place[key] = len(self.found)
            self.found.append(how)
        return self._place[key]


def _weighted(
    protocol: Protocol, asked: Objective, weightings: Sequence[Any], terms: int
) -> list[Protocol]:
    """The protocol under each weighting of the grid, where the objective has a part for it."""
    if not asked.weighted:
        return [protocol]
    found = [protocol.model_copy(update={"weighting": w}) for w in weightings] or [protocol]
    for each in found:
        term_weights(each.weighting, terms)
    return found


def alike(front: tuple[int, ...], end: tuple[int, ...]) -> bool:
    """Same form; token sites also need the same number of tokens."""
    return len(front) == len(end) and (len(front) != 2 or front[0] == end[0])


def _check_dm(spec: Spec, front: DonorFacts, end: DonorFacts, sites: tuple[int, int]) -> None:
    """A `dm` result between sites of unlike form would be a random map under a wrong name."""
    closed = [o.method for o in objectives(spec.asked_grid.methods) if not o.weights]
    if not closed:
        return
    shapes = front.shapes[sites[0] - 1], end.shapes[sites[1] - 1]
    raise FulaError(
        f"[grid] method '{closed[0]}' needs sites of one form, but site {sites[0]} of front "
        f"'{front.name}' "
        f"is {_shown(shapes[0])} and site {sites[1]} of end '{end.name}' {_shown(shapes[1])}; "
        f"leave {closed[0]} out, or choose other sites"
    )


def _check_pair(
    spec: Spec, data: DataFacts, front: DonorFacts, end: DonorFacts, protocol: Protocol
) -> None:
    pair = f"front '{front.name}' ({front.classes} classes) and end '{end.name}' ({end.classes})"
    weighed = dict.fromkeys(n for o in objectives(spec.asked_grid.methods) for n in o.weights)
    labels = next((name for name in weighed if method(name).labels), None)
    _check_heads(spec, front, end, protocol)
    if labels and front.classifies and front.classes != end.classes:
        raise FulaError(
            f"{labels} trains on labels, which must mean the same for both donors, but {pair} "
            f"differ in their class counts; leave {labels} out, or use donors of one task"
        )
    if labels and end.classes != data.classes:
        raise FulaError(
            f"{labels} trains on the labels of [data], which has {data.classes} classes, but end "
            f"'{end.name}' has {end.classes}; leave {labels} out, or use the end's own data"
        )
    for role, donor in (("end", end), ("front", front)):
        asked = role == "end" or protocol.measures_robustness  # its own head is attacked, too
        if asked and donor.classifies:
            named = f"{role} '{donor.name}'"
            check_answers(donor.classes, data.classes, named, f"[data] '{spec.data.source}'")
    given = [network_shape(spec.donor(donor.name), data.shape) for donor in (front, end)]
    if [front.input_shape, end.input_shape] != given:
        raise FulaError(
            f"{pair} take images {_shown(front.input_shape)} and {_shown(end.input_shape)}, but "
            f"[data] gives {_given(given)}; set the same size and channels everywhere, or size in "
            "[donors.NAME.input]"
        )
    if protocol.measures_robustness:
        attack = parse(protocol.robust)
        attack.check_installed()
        attack.check_classes(end.classes, f"end '{end.name}'")


def _check_heads(spec: Spec, front: DonorFacts, end: DonorFacts, protocol: Protocol) -> None:
    """Refuse, by its name, what asks more of a donor's head than it gives."""
    robust = [f"robust = '{protocol.robust}'"] * protocol.measures_robustness
    for role, donor in (("end", end), ("front", front)):
        followed = [*(_grid_following(spec) if role == "end" else ()), *robust]
        asked = [*followed, *(_grid_asking(spec) if role == "end" else ())]
        if asked and not donor.classifies:
            raise FulaError(no_answers_for(asked[0], _instead(spec, role, donor)))
        if donor.votes and followed:
            raise FulaError(no_gradient_for(followed[0], f"{role} '{donor.name}'"))


def _instead(spec: Spec, role: str, donor: DonorFacts) -> str:
    """What a donor without answers has."""
    if spec.donor(donor.name).headless:
        return f"{role} '{donor.name}' has head = 'none'"
    return f"{role} '{donor.name}' gives an embedding of {donor.classes} numbers"


def _grid_following(spec: Spec) -> Iterator[str]:
    """What follows a gradient through the end's answers."""
    weighed = (n for o in objectives(spec.asked_grid.methods) for n in o.weights)
    yield from (f"[grid] method '{name}'" for name in weighed if method(name).needs_classifier)
    if alpha := max(spec.asked_grid.alpha):
        yield f"[grid] alpha = {alpha}"


def _grid_asking(spec: Spec) -> Iterator[str]:
    """What else is read off the end's answers."""
    yield from (f"shortcut '{mark.label}'" for mark in spec.asked_grid.shortcut if mark)
    for name in spec.evaluation.measures:
        if measure(name).needs is Needs.OUTPUTS:
            yield f"[evaluation] measure '{name}'"


def _given(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(dict.fromkeys(map(_shown, shapes)))


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _check_no_labels_needed(spec: Spec) -> None:
    """Refuse, by its name, what needs labels; the data have none."""
    asked = next(_needing_labels(spec), None)
    if asked:
        raise FulaError(no_labels_for(asked))


def _needing_labels(spec: Spec) -> Iterator[str]:
    yield from _grid_needing_labels(spec) if spec.grid else ()
    for name in spec.similarity.measures if spec.similarity else ():
        if name in OF_LABELS:
            yield f"[similarity] measure '{name}'"
    for donor in spec.donors.values():
        if donor.data == spec.data and not donor.needs_no_labels:
            yield f"[donors.{donor.name}], which is trained or built for the classes of [data],"
        if donor.data == spec.data and donor.head and not donor.headless:
            yield f"[donors.{donor.name}] head = '{donor.head}'"
        if donor.data == spec.data and donor.min_accuracy is not None:
            yield f"[donors.{donor.name}] min_accuracy"


def _grid_needing_labels(spec: Spec) -> Iterator[str]:
    weighed = (n for o in objectives(spec.asked_grid.methods) for n in o.weights)
    yield from (f"[grid] method '{name}'" for name in weighed if method(name).labels)
    grid = {"alpha": max(spec.asked_grid.alpha), "subset": max(spec.asked_grid.subset, key=bool)}
    yield from (f"[grid] {key} = {value}" for key, value in grid.items() if value)
    yield from (f"shortcut '{mark.label}'" for mark in spec.asked_grid.shortcut if mark)
    yield from (f"robust = '{p.robust}'" for p in spec.protocols() if p.measures_robustness)


def _check_data(spec: Spec, data: DataFacts, protocols: Sequence[Protocol]) -> None:
    for subset in spec.asked_grid.subset:
        if subset is not None and subset > data.classes:
            raise FulaError(
                f"[grid] subset = {subset} is out of range: '{spec.data.source}' has classes "
                f"1 to {data.classes}"
            )
    if data.normalised and not any(donor.input for donor in spec.donors.values()):
        _check_plain(spec, protocols)
    trains = any(not isinstance(m, str) or method(m).trained for m in spec.asked_grid.methods)
    for rule in protocols:
        if trains and rule.batch_size > data.train_images:
            raise FulaError(
                f"[protocol] batch_size = {rule.batch_size} is more than the {data.train_images} "
                f"training images of '{spec.data.source}'; lower it"
            )
    markers = [*spec.asked_grid.shortcut, *(d.shortcut for d in spec.donors.values())]
    for shortcut in markers:
        _check_shortcut(shortcut, data)


def _check_plain(spec: Spec, protocols: Sequence[Protocol]) -> None:
    """Attacks on normalised images would keep to a range that is not theirs."""
    alpha, attacks = (
        max(spec.asked_grid.alpha),
        {p.robust for p in protocols if p.measures_robustness},
    )
    asked = [f"[grid] alpha = {alpha}"] * bool(alpha) + [f"robust = '{a}'" for a in sorted(attacks)]
    if asked:
        raise FulaError(
            f"{asked[0]} attacks pixels in [0, 1], but the images of '{spec.data.source}' are "
            "normalised; set mean = 0 and std = 1 in [data] for plain pixels, or mean and std in "
            "[donors.NAME.input]"
        )


def _check_shortcut(shortcut: ShortcutSpec | None, data: DataFacts) -> None:
    if shortcut is None:
        return
    if shortcut.size > min(data.shape[1:]):
        raise FulaError(
            f"shortcut size {shortcut.size} is larger than the images, {_shown(data.shape)}"
        )
    if shortcut.pattern == "aruco" and data.classes > 100:
        raise FulaError(
            f"the aruco shortcut has 100 markers, but the data has {data.classes} classes; "
            "use the pixel pattern"
        )
