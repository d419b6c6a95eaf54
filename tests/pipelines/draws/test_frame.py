"""Resizing, cutting and normalising against Pillow and torchvision, and the same from every
stream."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import center_crop

from fula_fast.errors import FulaError
from fula_fast.pipelines import (
    Augmentation,
    Frame,
    ImageSet,
    Input,
    Normalisation,
    Shortcut,
    evaluation_batches,
    open_stream,
    take,
)
from fula_fast.pipelines.draws.frame import framed

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pillow(images: np.ndarray, sides: tuple[int, int], how: str) -> np.ndarray:
    """Float images (B, C, H, W) resized channel by channel, without rounding."""
    size, kind = sides[::-1], PILLOW[how]
    made = [[np.asarray(Image.fromarray(c).resize(size, kind)) for c in image] for image in images]
    return np.array(made)


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "shape, resize, size, sides",
    [
        ((32, 32), 40, 35, (40, 40)),
        ((33, 32), 12, 9, (12, 12)),
        ((20, 30), 25, 25, (25, 37)),
        ((30, 20), None, 24, (24, 24)),
        ((32, 32), 32, 27, (32, 32)),
    ],
)
def test_as_pillow_and_torchvision_do(how, shape, resize, size, sides):
    images = np.random.default_rng(0).random((2, 3, *shape), np.float32)
    wanted = np.clip(pillow(images, sides, how), 0, 1)
    found = framed(torch.from_numpy(images), Frame(size, resize, how))
    torch.testing.assert_close(
        found, center_crop(torch.from_numpy(wanted), [size, size]), atol=2e-6, rtol=0
    )


def test_gradients_reach_every_pixel_of_a_resized_image():
    x = torch.rand(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    for how in PILLOW:
        assert torch.autograd.gradcheck(lambda x, how=how: framed(x, Frame(6, None, how)), x)


def test_a_cut_larger_than_the_image_is_refused():
    with pytest.raises(FulaError, match="resize = 8 is less than size = 9"):
        Frame(9, 8)


def test_what_changes_nothing_is_no_input():
    moments = Normalisation((0.0,) * 3, (1.0,) * 3)
    assert Input(Frame(32, 32), moments).of((3, 32, 32)) == Input()
    kept = Input(Frame(32, 36), Normalisation((0.5,), (1.0,)))
    assert kept.of((1, 32, 32)) == kept
    assert Input(Frame(32), None).of((3, 32, 40)).frame == Frame(32)


@pytest.fixture
def images():
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (40, 12, 12, 3), np.uint8)
    return ImageSet(pixels, generator.integers(0, 4, 40), tuple("abcd"))


@pytest.mark.parametrize("backend", ["reference", "resident", "dali"])
def test_streams_frame_what_they_gave(images, backend):
    """After the marker, before the normalisation."""
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    frame, moments = Frame(16, 20, "bicubic"), Normalisation((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    how = {
        "batch_size": 8, "seed": 3, "augmentation": Augmentation(2, True), "backend": backend,
        "shortcut": Shortcut("pixel", "random"),
    }  # fmt: skip
    plain = open_stream(images, **how).epoch(1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (moments.mean, moments.std))
    for given, found in zip(
        plain, open_stream(images, frame=frame, normalisation=moments, **how).epoch(1), strict=True
    ):
        wanted = (framed(given.images, frame) - mean) / std
        assert torch.equal(found.index, given.index)
        torch.testing.assert_close(found.images, wanted, atol=1e-6, rtol=0)


def test_evaluation_and_samples_are_framed(images):
    frame = Frame(9)
    for found, plain in (
        (take(images, 5, 0, frame=frame), take(images, 5, 0)),
        (next(evaluation_batches(images, frame=frame)).images,
         next(evaluation_batches(images)).images),
    ):  # fmt: skip
        assert torch.equal(found, framed(plain, frame))
