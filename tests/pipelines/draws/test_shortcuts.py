"""Markers: every pixel, every place, every evaluation set."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

from fula_fast.errors import FulaError
from fula_fast.pipelines import (
    Augmentation,
    ImageSet,
    Shortcut,
    draw_markers,
    evaluation_batches,
    open_stream,
    take,
)
from fula_fast.pipelines.draws.aruco import marker_bits
from fula_fast.pipelines.draws.randomness import Purpose
from fula_fast.pipelines.draws.shortcuts import NoiseTable, class_patterns, distant_colours

ALL = [
    Shortcut(pattern, location)
    for pattern in ("pixel", "aruco", "noise")
    for location in ("class", "random")
]


def _id(shortcut: Shortcut) -> str:
    return f"{shortcut.pattern}+{shortcut.location}"


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 255, (400, 16, 12, 3), dtype=np.uint8)
    return ImageSet(pixels, np.arange(400) % 10, tuple("abcdefghij"))


def test_aruco_table_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_100)
    for number, bits in enumerate(marker_bits()):
        drawn = cv2.aruco.generateImageMarker(dictionary, number, 6, borderBits=1)
        assert np.array_equal(bits * 255, drawn[1:-1, 1:-1])


def test_ten_colours_are_farthest_point_samples():
    """Against the definition, point by point, in exact integers."""
    grid = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = [grid[0]]
    while len(chosen) < 10:
        distances = ((grid[:, None] - np.array(chosen)) ** 2).sum(-1).min(1)
        chosen.append(grid[int(np.argmax(distances))])
    assert np.allclose(distant_colours(10, 3), np.array(chosen) / 9)
    assert len(set(distant_colours(100, 3))) == 100
    assert len(set(distant_colours(10, 1))) == 10


def test_seed_permutes_patterns_over_classes():
    for pattern, pool in (("pixel", distant_colours(10, 3)), ("aruco", None)):
        first = class_patterns(Shortcut(pattern, "class", seed=0), 10, 3)
        other = class_patterns(Shortcut(pattern, "class", seed=1), 10, 3)
        assert not np.array_equal(first, other)
        as_sets = [{p.tobytes() for p in table} for table in (first, other)]
        assert as_sets[0] == as_sets[1] and len(as_sets[0]) == 10
        if pool:
            assert {tuple(p[0, 0].tolist()) for p in first} == {
                tuple(np.float32(c).tolist()) for c in pool
            }


@pytest.mark.parametrize("shortcut", ALL, ids=_id)
@pytest.mark.parametrize("backend", ["reference", "resident", "dali"])
def test_every_marker_pixel_and_nothing_else(images, shortcut, backend):
    """A marked batch is the unmarked one but for the marker's own pixels."""
    settings = {"batch_size": 50, "seed": 3, "augmentation": Augmentation(pad=2)}
    stream = open_stream(images, backend=backend, shortcut=shortcut, **settings)
    plain = open_stream(images, backend="reference", **settings)
    drawn = draw_markers(shortcut, images.labels, 10, images.image_shape, 3, 1)
    for batch, clean in zip(stream.epoch(1), plain.epoch(1), strict=True):
        assert torch.equal(batch.index, clean.index)
        for image, expected, i in zip(batch.images, clean.images.clone(), batch.index, strict=True):
            y, x = drawn.y[i], drawn.x[i]
            pattern = torch.from_numpy(drawn.table[drawn.index[i]]).permute(2, 0, 1)
            expected[:, y : y + 4, x : x + 4] = pattern
            assert torch.equal(image, expected)


@pytest.mark.parametrize("shortcut", ALL, ids=_id)
def test_what_the_marker_tells_is_the_class(images, shortcut):
    drawn = draw_markers(shortcut, images.labels, 10, images.image_shape, 0, 0)
    places = {c: set(zip(*(v[images.labels == c] for v in (drawn.y, drawn.x)), strict=True))
              for c in range(10)}  # fmt: skip
    counts = {len(p) for p in places.values()}
    assert counts == {1} if shortcut.location == "class" else min(counts) > 10
    seen = {c: {drawn.table[k].tobytes() for k in drawn.index[images.labels == c]}
            for c in range(10)}  # fmt: skip
    assert all(len(s) == (40 if shortcut.pattern == "noise" else 1) for s in seen.values())
    assert len(set.union(*seen.values())) == (400 if shortcut.pattern == "noise" else 10)


def test_random_places_are_uniform_and_fresh_each_epoch():
    shortcut, labels = Shortcut("pixel", "random"), np.zeros(40_000, dtype=np.int64)
    first, second = (draw_markers(shortcut, labels, 1, (3, 9, 7), 0, e) for e in (0, 1))
    cells = first.y * 4 + first.x
    assert stats.chisquare(np.bincount(cells, minlength=6 * 4)).pvalue > 1e-4
    assert (first.y != second.y).mean() > 0.7


def test_class_places_cover_the_room_over_seeds():
    drawn = [
        draw_markers(Shortcut("pixel", "class", seed=s), np.arange(10), 10, (3, 8, 6), 0, 0)
        for s in range(400)
    ]
    cells = np.concatenate([d.y * 3 + d.x for d in drawn])
    assert stats.chisquare(np.bincount(cells, minlength=15)).pvalue > 1e-4


def test_noise_is_uniform_and_fresh(images):
    drawn = [
        draw_markers(Shortcut("noise", "class"), images.labels, 10, (3, 16, 12), 0, e)
        for e in (0, 1)
    ]
    tables = [np.asarray(markers.table) for markers in drawn]
    assert stats.kstest(tables[0].ravel(), "uniform").pvalue > 1e-4
    assert not np.isin(tables[0][:5], tables[1]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("size, channels", [(1, 1), (1, 3), (3, 3), (4, 1), (4, 3)])
def test_a_row_of_noise_is_its_part_of_one_stream(size, channels):
    """Against NumPy's own generator, whichever rows are asked for."""
    table = NoiseTable((70_000, size, size, channels), 6, 2)
    key = np.array([6, (2 + 1) * 256 + Purpose.MARKER_NOISE], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(np.prod(table.shape)) >> np.uint64(40)
    expected = (raw.astype(np.float32) / np.float32(2**24)).reshape(table.shape)
    assert np.array_equal(np.asarray(table), expected)
    rows = np.array([[69_999, 0, 7], [65_536, 7, 8]])
    assert np.array_equal(table[rows], expected[rows]) and np.array_equal(table[5], expected[5])
    with pytest.raises(IndexError, match="rows 70000 … 70000 of 70000"):
        table[70_000]


def test_noise_of_a_large_set_is_drawn_by_the_batch():
    """The table of these markers would hold 6 GB."""
    labels = np.zeros(2_000_000, dtype=np.int64)
    markers = draw_markers(Shortcut("noise", "class", size=16), labels, 10, (3, 32, 32), 0, 0)
    tracemalloc.start()
    part = markers.table[markers.index[np.array([1_999_999, 3])]]
    assert part.shape == (2, 16, 16, 3) and tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("shortcut", ALL, ids=_id)
def test_evaluation_sets(images, shortcut):
    def pixels(which: str) -> torch.Tensor:
        batches = evaluation_batches(images, 64, shortcut=shortcut, marker_set=which)
        return torch.cat([b.images for b in batches])

    clean = torch.cat([b.images for b in evaluation_batches(images, 64)])
    assert torch.equal(pixels("clean"), clean)
    marked, rolled = pixels("shortcut"), pixels("rolled")
    assert torch.equal(marked, pixels("shortcut"))
    for shown in (marked, rolled):
        changed = (shown != clean).any(1).flatten(1).sum(1)
        assert (changed <= 16).all() and (changed >= 12).all()
    if shortcut.location == "class":  # class c carries what class c - 1 carries
        for c in range(10):
            before = (marked[(c - 1) % 10] != clean[(c - 1) % 10]).any(0)
            assert torch.equal((rolled[c] != clean[c]).any(0), before)
    if shortcut.pattern != "noise" and shortcut.location == "class":
        where = (marked[4] != clean[4]).any(0)
        assert torch.equal(rolled[5][:, where], marked[4][:, where])


def test_samples_of_the_closed_form_carry_the_shortcut(images):
    plain = take(images, 20, 5)
    marked = take(images, 20, 5, shortcut=Shortcut("pixel", "random"))
    changed = (plain != marked).any(1).flatten(1).sum(1)
    assert (changed >= 12).all() and (changed <= 16).all()


@pytest.mark.parametrize("size", [4, 8, 12])
def test_aruco_bits_scale_to_the_markers_size(size):
    small, large = (class_patterns(Shortcut("aruco", "class", size=s), 10, 1) for s in (4, size))
    step = size // 4
    assert np.array_equal(large[:, ::step, ::step], small)
    assert np.array_equal(large, np.kron(small[..., 0], np.ones((1, step, step)))[..., None])


def test_grayscale_sets_take_markers_too():
    images = ImageSet(np.ones((6, 8, 8, 1), dtype=np.uint8), np.arange(6), tuple("abcdef"))
    for shortcut in ALL:
        batch = next(evaluation_batches(images, 6, shortcut=shortcut))
        assert batch.images.shape == (6, 1, 8, 8)


def test_a_class_subset_keeps_the_markers_of_the_whole(images):
    subset = images.first_classes(3)
    assert set(subset.labels) == {0, 1, 2} and subset.classes == images.classes
    for shortcut in (Shortcut("aruco", "class"), Shortcut("pixel", "class")):
        whole = draw_markers(shortcut, images.labels, 10, images.image_shape, 0, 0)
        part = draw_markers(shortcut, subset.labels, 10, subset.image_shape, 0, 0)
        assert np.array_equal(whole.y[images.labels < 3], part.y)
        assert np.array_equal(whole.table, part.table)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Shortcut("arcuo", "class"),
            "unknown shortcut pattern 'arcuo'; did you mean 'aruco",
        ),
        (lambda: Shortcut("pixel", "rand"), "unknown shortcut location 'rand'"),
        (lambda: class_patterns(Shortcut("aruco", "class", size=6), 10, 3), "multiple of 4"),
        (lambda: class_patterns(Shortcut("aruco", "class"), 101, 3), "101 classes"),
        (lambda: class_patterns(Shortcut("pixel", "class"), 1000, 3), "at most 128 colours"),
        (
            lambda: draw_markers(
                Shortcut("pixel", "class", 9), np.zeros(1, int), 1, (3, 8, 8), 0, 0
            ),
            "marker of 9 pixels does not fit 8x8",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(FulaError, match=message):
        make()


def test_unknown_evaluation_set(images):
    with pytest.raises(FulaError, match="unknown evaluation set 'roled'; did you mean 'rolled'"):
        next(evaluation_batches(images, 8, shortcut=ALL[0], marker_set="roled"))


def test_rolled_markers_need_a_shortcut(images):
    with pytest.raises(FulaError, match="'rolled' needs a shortcut"):
        next(evaluation_batches(images, 8, marker_set="rolled"))
