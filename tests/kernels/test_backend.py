"""The choice of a backend, and that a named one never gives way silently."""

from __future__ import annotations

import os

import pytest
import torch

import fula_fast.kernels as K
from fula_fast.errors import FulaError
from fula_fast.kernels import backend


@pytest.fixture
def asked_for_nothing():
    with backend.using("auto"):
        yield


def test_auto_on_a_cpu(asked_for_nothing):
    served = backend._CORE_NOUNS
    for noun in backend.NOUNS:
        want = "cpp" if noun in served else "reference"
        assert backend.choose(noun, torch.ones(1)) == want


def test_wide_stitches_on_a_cpu_are_left_to_the_librarys_products(asked_for_nothing):
    narrow = "cpp" if "stitch_hint" in backend._CORE_NOUNS else "reference"
    for shape in ((1, 2, 127, 4, 4), (1, 2, 300, 127), (1, 2, 127)):
        assert backend.choose("stitch_hint", torch.ones(shape)) == narrow
    for shape in ((1, 2, 128, 4, 4), (1, 2, 3, 128), (1, 2, 512)):
        assert backend.choose("stitch_hint", torch.ones(shape)) == "reference"
    assert backend.choose("lane_norm", torch.ones(2, 512, 4, 4)) == (
        "cpp" if "lane_norm" in backend._CORE_NOUNS else "reference"
    )


def test_auto_on_cuda_takes_triton_but_for_float64():
    for dtype, want in ((torch.float32, "triton"), (torch.float64, "reference")):
        assert backend._automatic("lane_norm", True, dtype) == want
    assert backend._automatic("gram", True, torch.float32) == "reference"


def test_reference_is_reference(asked_for_nothing):
    with backend.using("reference"):
        assert backend.choose("lane_norm", torch.ones(1)) == "reference"
        assert backend.explain()["lane_norm"] == "reference (FULA_BACKEND)"
    assert set(backend.explain()) == set(backend.NOUNS)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton runs anywhere then")
def test_a_backend_that_cannot_serve_says_why():
    x = torch.ones(1, 2, 3)
    with backend.using("triton"):
        with pytest.raises(FulaError, match="triton cannot serve hint_terms: the tensors are on"):
            K.hint_terms([x], [x])
        assert K.gram(x[0], x[0])[0].shape == (4, 4)  # has no Triton version: left at auto
        with pytest.raises(FulaError, match="it has no torch.float64"):
            backend.choose("pgd_step", x.double())


def test_an_unknown_backend_is_refused():
    message = "'tritn' is no backend; did you mean 'triton'?"
    with pytest.raises(FulaError, match=message), backend.using("tritn"):
        pass
