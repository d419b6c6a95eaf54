"""Weights as other programs write them: read to the last bit, or refused by what the file holds."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fula_fast import FulaError
from fula_fast.donors.donor import donor_from_checkpoint
from fula_fast.models import build, load_checkpoint
from fula_fast.pipelines import Input, Normalisation, load_source


def _model(seed: int = 0):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4).eval()


STATE = {name: value.clone() for name, value in _model().state().items()}


def _loaded(path):
    return load_checkpoint(path, into=_model(1))


def _assert_read(path) -> None:
    found = _loaded(path).state()
    assert all(torch.equal(found[n], value) for n, value in STATE.items())


def _named(prefix: str) -> dict:
    return {prefix + n: v for n, v in STATE.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model._orig_mod.",
        "_orig_mod.module.",
        "module.model.module.",
        "net.encoder.",
    ],
)
@pytest.mark.parametrize(
    "wrapper",
    [(), ("state_dict",), ("model_state",), ("model_state_dict",), ("checkpoint", "network")],
)
def test_prefixes_and_wrappers_of_any_order_and_depth(tmp_path, prefix, wrapper):
    content = _named(prefix)
    for key in reversed(wrapper):
        content = {key: content, "epoch": 3, "arch": "resnet18"}
    torch.save(content, tmp_path / "a.pt")
    _assert_read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "beside",
    [
        {"args": argparse.Namespace(lr=0.1, name="x")},
        {"best": np.float64(0.93), "count": np.int64(3)},
        {"history": np.arange(5.0)},
        {"config": SimpleNamespace(depth=18), "ids": {1, 2}},
        {"epoch": torch.tensor(3), "criterion.weight": torch.ones(10), "n_averaged": torch.ones(1)},
    ],
    ids=["namespace", "numpy-scalars", "array", "simple-namespace", "tensors"],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_what_training_keeps_beside_the_weights(tmp_path, beside, wrapped, caplog):
    flat = all(isinstance(v, torch.Tensor) for v in beside.values())
    content = {"state_dict": STATE, **beside} if wrapped else {**STATE, **beside}
    if not wrapped and "history" in beside:
        pytest.skip("an array among the weights is one of them")
    torch.save(content, tmp_path / "a.pt")
    with caplog.at_level(logging.WARNING):
        _assert_read(tmp_path / "a.pt")
    assert ("criterion.weight" in caplog.text) == (flat and not wrapped)


@pytest.mark.parametrize("form", ["pt", "npz", "list"])
def test_numpy_state_dicts(tmp_path, form):
    arrays = {n: v.numpy() for n, v in STATE.items()}
    path = tmp_path / ("a.npz" if form == "npz" else "a.pt")
    if form == "npz":
        np.savez(path, **arrays)
    else:
        torch.save(arrays if form == "pt" else OrderedDict(arrays), path)
    _assert_read(path)


def test_of_two_networks_the_one_that_fits_is_read(tmp_path):
    small = {n: v for n, v in STATE.items() if n.startswith("conv1")}
    torch.save({"teacher": small, "student": STATE}, tmp_path / "a.pt")
    _assert_read(tmp_path / "a.pt")


class Own(nn.Module):
    """A class that no other program knows."""

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "content, words",
    [
        (Own(), r"holds a pickled \S*Own .*save model.state_dict"),
        ({"model": Own(), "epoch": 3}, r"holds a pickled \S*Own"),
        (nn.Linear(2, 2), r"holds a pickled torch.nn.modules.linear.Linear"),
        ([1, 2], "holds no state dict but a list"),
        ({"lr": 0.1, "epoch": 2}, "no state dict but a dictionary of 'lr', 'epoch'"),
        ({**STATE, "projection.weight": torch.ones(3, 3)}, "unknown projection.weight"),
        ({**_named("net."), "adapter.weight": torch.ones(3, 3)}, "'adapter.weight' beside the net"),
    ],
)
def test_other_files_are_named_and_never_to_be_deleted(tmp_path, content, words):
    torch.save(content, tmp_path / "theirs.pt")
    with pytest.raises(FulaError, match=words) as caught:
        _loaded(tmp_path / "theirs.pt")
    assert "delete" not in str(caught.value) and "theirs.pt" in str(caught.value)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.npz", "a.pkl"])
def test_no_file_of_a_user_is_to_be_deleted(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Own()) if name == "a.pkl" else b"\x80\x02 something else" * 9)
    with pytest.raises(FulaError, match="copy it again|whose code|damaged") as caught:
        _loaded(path)
    assert "delete" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "a.pt")
    with pytest.raises(FulaError, match="is a TorchScript program"):
        _loaded(tmp_path / "a.pt")


MOMENTS = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
MEAN, STD = (torch.tensor(v)[:, None, None] for v in (MOMENTS.mean, MOMENTS.std))


@pytest.mark.parametrize(
    "content",
    [
        {**_named("model."), "normalize.mean": MEAN, "normalize.std": STD},
        {**STATE, "mean": MEAN, "std": STD},
        {"state_dict": {**_named("1."), "0.mu": MEAN, "0.sigma": STD}},
        {"state_dict": STATE, "mean": MEAN, "std": STD},
        {"model": {"net": _named("module.")}, "mean": [0.5, 0.4, 0.3], "std": (0.2, 0.3, 0.4)},
        {"checkpoint": {"model": STATE, "mean": MEAN.numpy(), "std": STD.numpy()}, "epoch": 3},
    ],
)
def test_a_normalisation_beside_the_network_is_used_or_refused(tmp_path, content):
    path = tmp_path / "robust.pt"
    torch.save(content, path)
    source = load_source("digits", size=8)
    how = {"model": "resnet18", "options": {"width": 4}}
    for wrong in (None, Normalisation((0.5,) * 3, (0.5,) * 3)):
        with pytest.raises(FulaError, match=r"set mean = \[0.5, 0.4, 0.3\], std = \[0.2, 0.3, 0.4"):
            donor_from_checkpoint(path, source, given=Input(None, wrong), **how)
    found = donor_from_checkpoint(path, source, given=Input(None, MOMENTS), **how)
    assert all(torch.equal(found.staged.state()[n], value) for n, value in STATE.items())
