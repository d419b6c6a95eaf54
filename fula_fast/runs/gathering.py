"""One pass of images through donors: second moments of all, rows of the chosen samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import FulaError
from ..measures.features import as_matrix
from ..measures.moments import Moments
from ..measures.outputs import Outputs
from ..models import Staged
from ..pipelines import Batch
from ..study.similarity_plan import FeatureView, SiteBlock, of_moments

Key = tuple[FeatureView, int]
SiteBlocks = Mapping[tuple[str, str], Sequence[SiteBlock]]
"""What is compared of each pair of donors."""


@dataclass
class Gathered:
    """`moments`: of all images, by view; `kept`: rows of the samples, site by site, by view and
    donor; `logits` of all images by donor (none where no measure needs them), with their labels.
    """

    moments: dict[Key, Moments]
    kept: dict[tuple[Key, str], list[Tensor]]
    logits: dict[str, Tensor]
    labels: Tensor
    samples: np.ndarray = field(repr=False)

    def outputs(self, name: str, taken: Tensor | None = None) -> Outputs:
        """A donor's outputs on all images, or on those `taken`, indices (n,)."""
        logits, labels = self.logits[name], self.labels
        if taken is not None:
            logits, labels = logits[taken], labels[taken]
        return Outputs.of(logits, labels)


def gather(
    donors: Mapping[str, Staged],
    batches: Iterable[Batch],
    images: int,
    samples: np.ndarray,
    wanted: SiteBlocks,
    *,
    outputs: bool,
    device: torch.device,
) -> Gathered:
    """Every image once through every donor, in the order of the batches.

    `images`: how many will come. `samples` (n,): sorted indices of those whose rows are kept.
    Raises `FulaError` for an activation that is not finite, with donor and site.
    """
    found = _empty(donors, images, samples, wanted, outputs, device)
    start = 0
    for batch in batches:
        stop = start + len(batch.labels)
        if stop > images:
            raise FulaError(f"the data gave more than the {images} images that it announced")
        found.labels[start:stop] = batch.labels
        rows = _one_batch(donors, batch, found, slice(start, stop))
        _keep(found, rows, start, stop)
        for key, moments in found.moments.items():
            moments.add({name: rows[key, name] for name in donors if (key, name) in found.kept})
        start = stop
    return found


def _empty(
    donors: Mapping[str, Staged],
    images: int,
    samples: np.ndarray,
    wanted: SiteBlocks,
    outputs: bool,
    device: torch.device,
) -> Gathered:
    users: dict[Key, list[tuple[str, str]]] = {}
    moving: set[Key] = set()
    for pair, blocks in wanted.items():
        for block in blocks:
            users.setdefault(block.key, []).append(pair)
            moving |= {block.key} if of_moments(block) else set()
    widths = {
        key: {n: _widths(key[0], donors[n]) for n in dict.fromkeys(sum(pairs, ()))}
        for key, pairs in users.items()
    }
    kept = {
        (key, name): [
            torch.empty(len(samples) * key[1], p, dtype=_dtype(donors[name]), device=device)
            for p in ps
        ]
        for key, of_donors in widths.items()
        for name, ps in of_donors.items()
    }
    moments = {key: Moments(widths[key], users[key], images * key[1], device) for key in moving}
    logits = {
        name: torch.empty(images, donor.num_classes, dtype=_dtype(donor), device=device)
        for name, donor in donors.items()
        if outputs
    }
    labels = torch.empty(images, dtype=torch.int64, device=device)
    return Gathered(moments, kept, logits, labels, samples)


def _widths(view: FeatureView, donor: Staged) -> list[int]:
    return [view.matrix(shape)[1] for shape in donor.site_shapes]


def _dtype(donor: Staged) -> torch.dtype:
    return next(t.dtype for t in donor.state().values() if t.is_floating_point())


def _one_batch(
    donors: Mapping[str, Staged], batch: Batch, found: Gathered, place: slice
) -> dict[tuple[Key, str], list[Tensor]]:
    """The matrices of a batch, by view and donor, site by site; logits go where they belong."""
    rows: dict[tuple[Key, str], list[Tensor]] = {at: [] for at in found.kept}
    for name, donor in donors.items():
        mine = [key for key, owner in found.kept if owner == name]
        for site, x in _activations(donor, batch.images.to(_dtype(donor)), name in found.logits):
            if site > donor.num_sites:
                found.logits[name][place] = x
                break
            if not x.isfinite().all():
                raise FulaError(
                    f"donor '{name}' gives NaN or infinity at site {site}; a measure needs finite "
                    "numbers: leave the donor out, or train it anew"
                )
            for key in mine:
                rows[key, name].append(_matrix(x, key[0]))
    return rows


def _activations(donor: Staged, images: Tensor, answers: bool) -> Iterator[tuple[int, Tensor]]:
    """(site, activation), and at last, where `answers` are wanted, (sites + 1, logits)."""
    x = images
    for site in range(1, donor.num_sites + 1):
        x = donor.run(x, site - 1, site)
        yield site, x
    if answers:
        yield donor.num_sites + 1, donor.head(x)


def _matrix(x: Tensor, view: FeatureView) -> Tensor:
    """In float64, and a copy: the next stage may write into what it is given."""
    word = view.word(tuple(x.shape[1:]))
    return as_matrix(x, word, view.size).to(torch.float64, copy=True)


def _keep(
    found: Gathered, rows: Mapping[tuple[Key, str], list[Tensor]], start: int, stop: int
) -> None:
    """The rows of the samples among images start … stop - 1."""
    low, high = np.searchsorted(found.samples, [start, stop])
    taken = torch.from_numpy(found.samples[low:high] - start)
    for (key, name), matrices in found.kept.items():
        each = key[1]
        for kept, new in zip(matrices, rows[key, name], strict=True):
            own = new.unflatten(0, (-1, each))[taken.to(new.device)]
            kept[low * each : high * each] = own.flatten(0, 1)
