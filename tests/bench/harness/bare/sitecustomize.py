"""A bare GPU machine, emulated: put this folder on PYTHONPATH, and of all that is installed here only
what such a machine holds can be imported. Everything else must lie on PYTHONPATH; so must
`fula_fast`, which is not installed there."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

HELD = frozenset(
    "torch torchgen functorch triton torchvision numpy scipy sklearn joblib threadpoolctl narwhals"
    " pytest _pytest pluggy iniconfig py xdist execnet pytest_benchmark cpuinfo hypothesis"
    " _hypothesis_globals _hypothesis_pytestplugin _hypothesis_ftz_detector sortedcontainers attr attrs"
    " rich typer click shellingham annotated_doc markdown_it mdurl pygments safetensors pyarrow jinja2"
    " markupsafe PIL filelock fsspec networkx sympy mpmath packaging matplotlib mpl_toolkits contourpy"
    " cycler dateutil fontTools kiwisolver pyparsing six pylab nvidia setuptools _distutils_hack pip"
    " pkg_resources cloudpickle typing_extensions requests urllib3 idna certifi charset_normalizer yaml psutil tqdm cuda".split()
)
CARRIED = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


class Bare:
    """In place of all finders: asks them only for what the machine holds."""

    def __init__(self, finders: list) -> None:
        self.finders = finders

    def find_spec(self, name: str, path=None, target=None):
        """None for what is not there, as any finder."""
        top = name.partition(".")[0]
        if name == "nvidia.dali" or (top == "fula_fast" and path is None):
            return PathFinder.find_spec(name, CARRIED)
        spec = self._found(name, path, target)
        if spec is None or path is not None or top in HELD or not _installed(spec):
            return spec
        return PathFinder.find_spec(name, CARRIED)

    def _found(self, name: str, path, target):
        if name.startswith("fula_fast."):  # an editable install's finder knows all of these
            return PathFinder.find_spec(name, path)
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)

    def invalidate_caches(self) -> None:
        """Of all that hold one."""
        for finder in self.finders:
            getattr(finder, "invalidate_caches", lambda: None)()


def _installed(spec) -> bool:
    places = [spec.origin or "", *(spec.submodule_search_locations or [])]
    return any("site-packages" in Path(place).parts for place in places)


sys.meta_path[:] = [Bare(list(sys.meta_path))]
