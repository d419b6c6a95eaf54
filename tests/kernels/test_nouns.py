"""The package: one list of nouns, and every name what it says."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction, signature
from pkgutil import walk_packages

import pytest

import fula_fast.kernels as K
from fula_fast.kernels import backend

MODULES = {"reference": "reference", "triton": "triton", "cpp": "cpu"}


def _record(noun: str) -> type:
    name = "".join(part.title() for part in noun.split("_")) + "Arguments"
    return getattr(import_module(f"fula_fast.kernels.{noun}.arguments"), name)


def test_a_noun_stays_a_function_whatever_is_loaded():
    """Each is the name of a folder too, and loading a folder binds its name in the package."""
    for module in walk_packages(K.__path__, "fula_fast.kernels."):
        optional = ".triton" in module.name or ".device" in module.name or ".tiles" in module.name
        wanted = not module.name.endswith("__main__") and ".cpp" not in module.name
        if wanted and (find_spec("triton") or not (optional or ".aot" in module.name)):
            import_module(module.name)
    assert all(isfunction(getattr(K, noun)) for noun in backend.NOUNS)
    assert set(backend.NOUNS) < set(K.__all__)


@pytest.mark.parametrize("noun", backend.NOUNS)
def test_a_noun_has_a_module_for_every_backend(noun):
    folder = f"fula_fast.kernels.{noun}"
    for name, module in MODULES.items():
        assert (find_spec(f"{folder}.{module}") is not None) == (name in backend.NOUNS[noun])


@pytest.mark.parametrize("noun", backend.NOUNS)
def test_the_record_holds_what_the_function_takes(noun):
    assert set(_record(noun)._fields) == set(signature(getattr(K, noun)).parameters)
