"""Initial stitches of a front and an end: the closed form, the identity, or a keyed random draw.

The closed form of any number of site pairs takes one pass of each donor over the DM images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..errors import FulaError
from ..models import Staged, batchnorm
from ..study.protocol import Protocol
from ..study.wave_memory import CLOSED_FORM_ROWS
from .closed_form import ClosedForm, Gram, cutoff, paired_rows, solve
from .stitch import Shape, Stitch

Pair = tuple[int, int]
_ROW_BYTES = 4 + 4 + 8 + 8
"""Of a number in a pair's rows: resized, as a row, in float64, and beside a column of ones."""
_DM_BATCH = 128
"""Most images in a pass for the closed form; never more than a training batch, for whose memory a
wave is planned."""


def activations(model: Staged, x: Tensor, sites: Iterable[int]) -> list[Tensor]:
    """The model's activations (B, ...) of x (B, C, H, W) at `sites`, in one pass.

    Sites ascend; 0 is the input.
    """
    found, at = [], 0
    for site in sites:
        x, at = model.run(x, at, site), site
        found.append(x)
    return found


def check_sites(model: Staged, site: int, role: str) -> None:
    """`FulaError` unless `site` is one that can be stitched."""
    if not 1 <= site <= model.num_sites:
        raise FulaError(
            f"{role} site {site} is out of range: {model.name} has sites 1 to {model.num_sites}"
        )


def new_stitch(front: Shape, end: Shape, protocol: Protocol) -> Stitch:
    """An unfilled stitch between two site shapes, as the protocol asks."""
    return Stitch(front, end, batchnorm=protocol.stitch_bn == "both", bias=protocol.stitch_bias)


def initial_stitches(
    front: Staged, end: Staged, pairs: Iterable[Pair], protocol: Protocol, images: Tensor, seed: int
) -> dict[Pair, Stitch]:
    """A filled float32 stitch for every (front site, end site) pair.

    `images`: (n, C, H, W) un-augmented training images for the closed form, or batches of them
    (for `dm_samples = "all"`); unused by other initialisations. `seed` keys a random
    draw. Sites of unlike form are drawn at random whatever the protocol asks for, as DM is not
    defined there.
    """
    pairs = list(dict.fromkeys(pairs))
    front_shapes, end_shapes = front.site_shapes, end.site_shapes
    stitches = {
        (i, j): new_stitch(front_shapes[i - 1], end_shapes[j - 1], protocol) for i, j in pairs
    }
    closed = [p for p in pairs if protocol.starts_closed and stitches[p].geometry.like]
    forms = closed_forms(front, end, closed, protocol, images)
    for pair, stitch in stitches.items():
        if pair in forms:
            stitch.assign(forms[pair].weight, forms[pair].bias)
        else:
            stitch.initialise("identity" if protocol.init == "identity" else "random", seed)
    return stitches


def closed_forms(
    front: Staged,
    end: Staged,
    pairs: list[Pair],
    protocol: Protocol,
    images: Tensor | Iterable[Tensor],
) -> dict[Pair, ClosedForm]:
    """DM of every pair from fp32 activations in eval mode (protocol section 3).

    images: (N, C, H, W), or batches of them.
    """
    if not pairs:
        return {}
    everything = protocol.dm_samples == "all"
    batches = _batches(images, min(_DM_BATCH, protocol.batch_size))
    if protocol.dm_rcond != "rows" and protocol.dm_rcond < 1e-7 and not everything:
        kept = list(_paired(front, end, pairs, batches))
        return {p: solve((d[p] for d in kept), protocol.dm_rcond) for p in pairs}
    grams = {pair: Gram() for pair in pairs}
    for data in _paired(front, end, pairs, batches):
        for pair, (x, y) in data.items():
            for part in _few_rows(x, y):
                grams[pair].add(*paired_rows(*part))
    return {p: g.solve(cutoff(protocol.dm_rcond, g.rows, everything)) for p, g in grams.items()}


def _few_rows(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some samples of a batch at a time: a deep front resized to a shallow end is many times its
    own size, and its float64 copies more."""
    resized = x.shape[1] * y[0, 0].numel() if x.dim() == 4 else x[0].numel()
    count = max(CLOSED_FORM_ROWS // (_ROW_BYTES * (resized + y[0].numel())), 1)
    return zip(x.split(count), y.split(count), strict=True)


def _batches(images: Tensor | Iterable[Tensor], most: int) -> Iterable[Tensor]:
    batches = (images,) if isinstance(images, Tensor) else images
    return (part for batch in batches for part in batch.split(most))


@torch.no_grad()
def _paired(
    front: Staged, end: Staged, pairs: list[Pair], batches: Iterable[Tensor]
) -> Iterator[dict[Pair, tuple[Tensor, Tensor]]]:
    fronts, ends = sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})
    with batchnorm.rule(front, "running"), batchnorm.rule(end, "running"):
        for x in batches:
            a = dict(zip(fronts, activations(front, x, fronts), strict=True))
            g = dict(zip(ends, activations(end, x, ends), strict=True))
            yield {(i, j): (a[i], g[j]) for i, j in pairs}
