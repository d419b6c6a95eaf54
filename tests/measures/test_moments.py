"""Streamed second moments: what all samples at once would give, in either space, within memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fula_fast.errors import FulaError
from fula_fast.measures.matrices import Sides, between, of_moments
from fula_fast.measures.moment_memory import (
    gathered_bytes,
    moments_bytes,
    pairs_bytes,
    smaller_space,
)
from fula_fast.measures.moments import Moments
from fula_fast.measures.pair import Side, effective_rank, of_sides
from fula_fast.measures.registry import Needs, measure, measures

CHOICE = {m.name: {} for m in measures(Needs.MOMENTS)} | {"linear_r2": {"ridge": 0.01}}
PAIRS = (("front", "end"), ("front", "front"), ("end", "third"))


def models(n: int = 50, wide: int = 9) -> dict[str, list[Tensor]]:
    """Three models' activations; some related, one with dead channels, means far from zero."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    first, noise = draw(n, 6, 2, 2), draw(n, 5)
    second = first.flatten(1) @ draw(24, 5) + noise + 40
    dead = draw(n, wide)
    dead[:, 2] = 0.1
    return {"front": [first, first.mean((2, 3)) - 3], "end": [second, dead], "third": [draw(n, 3)]}


def widths(found: dict[str, list[Tensor]]) -> dict[str, list[int]]:
    return {name: [x.flatten(1).shape[1] for x in sites] for name, sites in found.items()}


def streamed(found: dict[str, list[Tensor]], space: str | None, batch: int) -> Moments:
    n = len(next(iter(found.values()))[0])
    moments = Moments(widths(found), PAIRS, n, space=space)
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        moments.add({name: [x[part] for x in sites] for name, sites in found.items()})
    return moments


@pytest.mark.parametrize("batch", [1, 7, 50])
@pytest.mark.parametrize("space", ["features", "samples"])
@pytest.mark.parametrize("shape", [(50, 9), (50, 120), (18, 9)], ids=str)
def test_a_stream_is_all_samples_at_once(space: str, batch: int, shape: tuple[int, int]) -> None:
    found = models(*shape)
    moments = streamed(found, space, batch)
    for x, y in PAIRS:
        matrices = of_moments(moments, x, y, CHOICE)
        for name, options in CHOICE.items():
            for i, a in enumerate(found[x]):
                for j, b in enumerate(found[y]):
                    expected = between(name, a, b, **options)
                    if (name, x, i) == ("angular_shape", y, j):  # arccos has no digits near 1
                        assert matrices[name][i, j] < 1e-6
                    else:
                        assert matrices[name][i, j] == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize("shapes", [(60, 8, 20), (30, 80, 8), (30, 80, 50)])
def test_both_spaces_agree(shapes: tuple[int, int, int]) -> None:
    n, p, q = shapes
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=generator)
    y = x[:, : min(p, 4)] @ torch.randn(min(p, 4), q, generator=generator)
    y = y + torch.randn(n, q, generator=generator)
    spaces = ("features", "samples")
    pairs = [of_sides(Side.of(x, space=a), Side.of(y, space=b)) for a in spaces for b in spaces]
    for name, options in CHOICE.items():
        values = [float(measure(name).load()(pair, **options)) for pair in pairs]
        assert max(values) - min(values) < 1e-9, (name, values)
    ranks = [float(effective_rank(Side.of(x, space=space))) for space in spaces]
    assert ranks[0] == pytest.approx(ranks[1], abs=1e-9)


def test_a_large_mean_does_not_cost_digits() -> None:
    found = models()
    moved = {name: [x.double() + 1e5 for x in sites] for name, sites in found.items()}
    for space in ("features", "samples"):
        far = of_moments(streamed(moved, space, 7), "front", "end", CHOICE)
        near = of_moments(streamed(found, space, 7), "front", "end", CHOICE)
        for name in CHOICE:
            torch.testing.assert_close(far[name], near[name], atol=1e-8, rtol=0)


def test_constant_activations_stay_constant() -> None:
    found = models()
    found["end"][0] = torch.full_like(found["end"][0], 0.1)
    for space in ("features", "samples"):
        matrices = of_moments(streamed(found, space, 7), "front", "end", CHOICE)
        for name in CHOICE:
            assert matrices[name][:, 0].tolist() == [measure(name).worst] * 2, name


def test_the_smaller_space_is_taken() -> None:
    narrow, pairs = {"a": [4, 4], "b": [4]}, [("a", "b")]
    assert Moments(narrow, pairs, 1000).space == "features"
    assert Moments({"a": [4000], "b": [4]}, pairs, 10).space == "samples"
    for samples in (5, 10, 20, 40):
        chosen = smaller_space(narrow, pairs, samples)
        other = {"features": "samples", "samples": "features"}[chosen]
        sizes = [gathered_bytes(narrow, pairs, samples, space) for space in (chosen, other)]
        assert sizes[0] <= sizes[1]


def tensors(thing: object, seen: dict[int, int]) -> int:
    """Bytes of all tensors reachable from an object, each storage once."""
    if isinstance(thing, Tensor):
        seen[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    elif isinstance(thing, dict):
        for part in thing.values():
            tensors(part, seen)
    elif isinstance(thing, list | tuple):
        for part in thing:
            tensors(part, seen)
    elif hasattr(thing, "__dict__"):
        tensors(vars(thing), seen)
    return sum(seen.values())


@pytest.mark.parametrize("space", ["features", "samples"])
def test_memory_is_predicted(space: str) -> None:
    found = models(50, 120)
    moments = streamed(found, space, 10)
    held = tensors(moments, {})
    predicted = gathered_bytes(widths(found), PAIRS, 50, space)
    assert held == moments.bytes == predicted
    for x, y in PAIRS:
        of_moments(moments, x, y, CHOICE)
    peak = moments_bytes(widths(found), PAIRS, 50, space)
    assert predicted < tensors(moments, {}) <= peak < 3 * tensors(moments, {})


def test_memory_of_pairs_of_samples() -> None:
    chosen = [measure(n) for n in ("rbf_cka", "mutual_knn", "neighbourhood_jaccard", "cknna")]
    found = Sides([torch.randn(40, 5) for _ in range(3)], {m.name: {} for m in chosen})
    held = tensors(found._groups, {})
    assert held == 3 * 4 * 8 * 40 * 40  # k-NN and Jaccard share theirs, CKNNA has two
    work = 8 * 40 * 40 * (6 + 4 * 2)  # on CKNNA's two, the largest, for one order
    assert pairs_bytes(chosen, 3, 40) == held + work
    assert pairs_bytes([measure("linear_cka")], 3, 40) == 0


def test_batches_of_other_images_or_widths_are_refused() -> None:
    moments = Moments({"a": [2], "b": [3]}, [("a", "b")], 10)
    with pytest.raises(FulaError, match="must see the same images"):
        moments.add({"a": [torch.ones(4, 2)], "b": [torch.ones(5, 3)]})
    with pytest.raises(FulaError, match=r"a has \[3\] features, \[2\] were announced"):
        moments.add({"a": [torch.ones(4, 3)], "b": [torch.ones(4, 3)]})
    moments.add({"a": [torch.ones(4, 2)], "b": [torch.ones(4, 3)]})
    with pytest.raises(FulaError, match="4 samples came, 10 were announced"):
        moments.pair(("a", 0), ("b", 0))
    with pytest.raises(FulaError, match="14 samples came, 10"):
        moments.add({"a": [torch.ones(10, 2)], "b": [torch.ones(10, 3)]})
    moments.add({"a": [torch.ones(6, 2)], "b": [torch.ones(6, 3)]})
    if moments.space == "features":
        with pytest.raises(FulaError, match="b with a was not chosen"):
            moments.pair(("b", 0), ("a", 0))
    with pytest.raises(FulaError, match="rbf_cka needs pairs"):
        of_moments(moments, "a", "b", {"rbf_cka": {}})
