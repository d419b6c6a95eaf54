"""How many bytes the measures will hold, known before a run starts and without torch.

Second moments are gathered in the space that takes less: `features` (moments of features, float64,
whatever the number of samples) or `samples` (the activations themselves).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .registry import Measure, Needs, measure

FLOAT64 = 8
_FLOAT32 = 4
WORK_BYTES = 2**28
"""How much memory the orders that are compared at once may take."""
Widths = Mapping[str, Sequence[int]]
"""The number of features at each site of each group (a donor, or the lanes of a stitch)."""
GroupPairs = Sequence[tuple[str, str]]


def gathered_bytes(widths: Widths, pairs: GroupPairs, samples: int, space: str) -> int:
    """What `moments.Moments` holds while batches come in."""
    if space == "samples":
        return FLOAT64 * samples * sum(map(sum, widths.values()))
    own = sum(3 * sum(ps) + sum(p * p for p in ps) + 2 * len(ps) for ps in widths.values())
    crossed = sum(_crossed(widths[a], widths[b]) for a, b in pairs)
    return FLOAT64 * (own + crossed)


def _crossed(a: Sequence[int], b: Sequence[int]) -> int:
    """Numbers of one pair of groups: cross moments, products of norms, norms with features."""
    wide = sum(a) * sum(b)
    return wide + len(a) * len(b) + len(b) * sum(a) + len(a) * sum(b)


def smaller_space(widths: Widths, pairs: GroupPairs, samples: int) -> str:
    """The space in which all site pairs take fewer bytes."""
    sizes = [gathered_bytes(widths, pairs, samples, space) for space in ("features", "samples")]
    return "features" if sizes[0] <= sizes[1] else "samples"


def moments_bytes(widths: Widths, pairs: GroupPairs, samples: int, space: str | None = None) -> int:
    """The peak with all measures of second moments taken of all site pairs, one pair at a time.

    Beside what is gathered: each site's moment, eigenvectors and loadings, in samples' space the
    rows of its principal components too, and the work on the widest pair.
    """
    space = space or smaller_space(widths, pairs, samples)
    sites = [
        (min(p, samples) if space == "samples" else p, p) for ps in widths.values() for p in ps
    ]
    rows = sum(samples * d for d, p in sites if d < p)
    sides = sum(2 * d * d + d * p for d, p in sites)
    first, second = (sorted((d for d, _ in sites), reverse=True) * 2)[:2]
    work = 6 * first * second + 3 * first * first
    if space == "samples":  # centring makes two copies
        work += 2 * samples * max(p for _, p in sites)
    return gathered_bytes(widths, pairs, samples, space) + FLOAT64 * (rows + sides + work)


def pairs_bytes(chosen: Sequence[Measure], sides: int, samples: int, orders: int = 1) -> int:
    """Matrices of pairs of samples for all sides, and the work on one pair in `orders` at once."""
    held = {(m.prepare, *m.options.items(), *m.fixed.items()): m.matrices
            for m in chosen if m.needs is Needs.PAIRS}  # fmt: skip
    if not held:
        return 0
    work = 6 + 4 * max(held.values()) * orders
    return FLOAT64 * samples * samples * (sum(held.values()) * sides + work)


@dataclass(frozen=True)
class CellMeasures:
    """What finished cells are tested with: `measures` by name, on `images`, and pairs of `samples`
    of them. What a lane keeps of that until it has its columns is `lane_bytes`, beside which all
    lanes share `shared_bytes`; `widths`: features of the end's sites from the lane's own on.
    """

    measures: tuple[str, ...] = ()
    images: int = 0
    samples: int = 0

    def lane_bytes(self, widths: Sequence[int], classes: int) -> int:
        """Moments with the end's and what is computed of them, rows of samples, and logits."""
        need = 0
        if self._needs(Needs.MOMENTS):
            pairs = [({"lane": [p], "end": [p]}, [("lane", "end")]) for p in widths]
            need += sum(gathered_bytes(*both, self.images, "features") for both in pairs)
            need += FLOAT64 * sum(3 * p * p for p in widths)
        if self._needs(Needs.PAIRS):
            need += _FLOAT32 * self._rows * sum(widths)
        return need + _FLOAT32 * self.images * classes * self._needs(Needs.OUTPUTS)

    def shared_bytes(self, widths: Sequence[int], classes: int) -> int:
        """The end's own share of that, and the work on one pair."""
        need = self.lane_bytes(widths, classes)
        if self._needs(Needs.MOMENTS):
            need += FLOAT64 * 9 * max(widths) ** 2
        if self._needs(Needs.OUTPUTS):
            need += 8 * FLOAT64 * self.images * classes
        return need + pairs_bytes([measure(n) for n in self.measures], 2, self._rows)

    @property
    def _rows(self) -> int:
        return min(self.images, self.samples)

    def _needs(self, needs: Needs) -> bool:
        return any(measure(name).needs is needs for name in self.measures)


def offsets(sizes: Sequence[int]) -> list[slice]:
    """Where each site's features lie in a group's, side by side."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return [slice(a, b) for a, b in pairwise(ends)]
