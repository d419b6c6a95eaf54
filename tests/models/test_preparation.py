"""A donor behind an input of its own."""

import copy

import pytest
import torch
from torch.nn.functional import interpolate

from fula_fast.errors import FulaError
from fula_fast.models import Staged, build, content_hash, save_checkpoint, with_input

LARGE = {"size": 12, "resize": 14, "mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.fixture
def staged() -> Staged:
    torch.manual_seed(0)
    return build("resnet18", num_classes=4, input_shape=(3, 12, 12), width=4).eval()


@torch.no_grad()
def test_it_is_the_model_of_prepared_images(staged):
    x = torch.rand(5, 3, 8, 8)
    by_hand = interpolate(x, (14, 14), mode="bilinear", antialias=True)[:, :, 1:13, 1:13]
    by_hand = (by_hand - 0.5) / 0.25
    own = with_input(staged, (3, 8, 8), **LARGE)
    torch.testing.assert_close(own(x), staged(by_hand), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(own.run(x, 0, 3), staged.run(by_hand, 0, 3), atol=1e-6, rtol=1e-6)
    assert own.input_shape == (3, 8, 8) and staged.input_shape == (3, 12, 12)
    assert own.site_shapes == staged.site_shapes
    assert content_hash(own) == content_hash(staged)
    assert torch.equal(own.run(x, 0, 0), x)
    site = own.run(x, 0, 4)
    assert torch.equal(own.run(site, 4), own.run(x))
    twin = copy.deepcopy(own)
    assert torch.equal(twin(x), own(x))
    assert torch.equal(staged(by_hand), staged(by_hand)) and staged.preparation is None


def test_gradients_reach_the_decoded_pixels(staged):
    own = with_input(staged, (3, 8, 8), **LARGE).double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(own(x)[:, 0].sum(), x)
    step = 1e-7 * torch.randn_like(x)  # a step that crosses few kinks of the ReLUs
    with torch.no_grad():
        change = (own(x + step)[:, 0].sum() - own(x - step)[:, 0].sum()) / 2
    torch.testing.assert_close(change, (grad * step).sum(), rtol=2e-3, atol=0)


def test_narrow_types_are_prepared_in_float32(staged):
    own = with_input(staged, (3, 8, 8), **LARGE)
    x = torch.rand(2, 3, 8, 8).bfloat16()
    assert torch.equal(own.prepared(x), own.prepared(x.float()).bfloat16())


def test_an_input_that_changes_nothing_is_the_model_itself(staged):
    assert with_input(staged, (3, 12, 12), size=12, mean=(0,) * 3, std=(1,) * 3) is staged


def test_refusals(staged, tmp_path):
    with pytest.raises(FulaError, match="takes images 3×12×12, but its input gives 3×10×10"):
        with_input(staged, (3, 8, 8), size=10)
    own = with_input(staged, (3, 8, 8), **LARGE)
    with pytest.raises(FulaError, match="has its input already"):
        with_input(own, (3, 8, 8), size=8)
    with pytest.raises(FulaError, match="mean and std are given together"):
        with_input(staged, (3, 8, 8), size=12, mean=(0.5,) * 3)
    with pytest.raises(FulaError, match="holds no input"):
        save_checkpoint(own, tmp_path / "own.safetensors")
