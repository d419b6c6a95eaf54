"""The house keeps its plan: imports go down, no circles, one noun per concept, light planning."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fula_fast.attacks import attacks
from fula_fast.device.mode import MODES
from fula_fast.device.precision import PRECISIONS
from fula_fast.methods import methods
from fula_fast.models.families import DEFAULTS

ROOT = Path(__file__).parents[2]
HOMES = {"fula_fast": "fula_fast", "kernels": "fula_fast.kernels"}
HOMES |= {"pipelines": "fula_fast.pipelines", "bench": "fula_fast.bench"}

LAYERS = (
    {"errors", "progress", "stops", "files"},
    {"device", "kernels", "pipelines", "models"},
    {"methods"},
    {"measures"},
    {"study"},
    {"store", "attacks", "stitching"},
    {"donors", "engine"},
    {"runs", "results"},
    {"report", "reproduce"},
    {"api"},
    {"bench"},
    {"guide"},
    {"cli", "__main__"},
)
BELOW = {"attacks.names": "methods", "attacks.settings": "methods"}
BELOW |= {"attacks.options": "methods"}
"""What an attack is called and set to, without torch: a study is checked against it."""

TENSORS = {"fula_fast.methods.objectives"}
"""Loaded by name when a step needs it."""

LOOSE = {"__init__", "__main__", "api", "errors", "progress", "results", "stops"}
SAME_NAME = {
    # a benchmark is named for what it measures
    "agreement", "attack", "data", "precision", "record", "solo", "grid", "kernels",
    "roofline", "similarity",
    # the augmentation of NumPy, and its kernel
    "augment",
    # what is known by name, of methods, measures and sources, and what of it ships; an experiment's
    # driver and its stream
    "registry", "catalogue", "noise",
}  # fmt: skip
"""Module names that may stand twice; files in a kernel's folder are named by their role."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, prefix in HOMES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((prefix, *parts))] = path
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """Modules of the package that a module imports anywhere, lazily too; not for types alone."""
    path, found = modules()[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text("utf-8"))
    typing = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= _from(node, package)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return frozenset(m for m in found if m in modules() and m != name)


def _from(node: ast.ImportFrom, package: str) -> set[str]:
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
    inner = {f"{base}.{alias.name}" for alias in node.names}
    if node.level and not node.module:  # `from . import _core`: an extension is no module of ours
        return inner
    return {m if m in modules() else base for m in inner}


def layer(name: str) -> int:
    """The floor that a module lives on; -1 for the package itself, which loads nothing."""
    inner = name.partition(".")[2]
    room = BELOW.get(inner, inner.partition(".")[0])
    return next((i for i, rooms in enumerate(LAYERS) if room in rooms), -1)


def test_every_room_has_its_floor():
    rooms = {name.split(".")[1] for name in modules() if name.count(".")}
    assert rooms - {"specs"} == set().union(*LAYERS) & rooms


def test_imports_go_down_lazy_ones_too():
    up = [
        f"{name} -> {other}"
        for name in modules()
        for other in imports(name)
        if layer(other) > layer(name) >= 0
    ]
    assert not up, up


def test_no_circles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in imports(name):
                visit(other, (*path, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_few_loose_modules():
    assert {path.stem for path in (ROOT / "fula_fast").glob("*.py")} == LOOSE


@pytest.mark.parametrize("room", ["study", "methods"])
def test_what_plans_loads_no_torch(room):
    names = [n for n in modules() if n.startswith(f"fula_fast.{room}") and n not in TENSORS]
    code = f"import sys\nfor n in {names}: __import__(n)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_two_modules_of_one_name():
    homes = defaultdict(list)
    for name, path in modules().items():
        if path.name != "__init__.py" and not name.startswith("fula_fast.kernels."):
            homes[path.stem].append(name)
    twice = {stem: names for stem, names in homes.items() if len(names) > 1}
    assert not {stem: names for stem, names in twice.items() if stem not in SAME_NAME}


NAMES = {
    "method": (
        [each.name for each in methods()],
        # one init rule is named for the closed form; one family of experiments for its paper
        {"study/protocol.py", "reproduce/recipe.py", *(f"methods/{m.name}.py" for m in methods())},
    ),
    "attack": ([each.name for each in attacks()], {"attacks/names.py"}),
    "architecture": (list(DEFAULTS), {"models/families.py"}),
    "precision": (list(PRECISIONS), {"device/precision.py"}),
    "mode": (list(MODES), {"device/mode.py"}),
}


def strings(path: Path) -> Iterator[str]:
    """String literals of a file but for docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_a_literal_in_one_file(kind):
    names, homes = NAMES[kind]
    package = ROOT / "fula_fast"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if not set(names).isdisjoint(strings(path))
    }
    assert found and found <= homes


def test_no_two_public_classes_of_one_name():
    homes = defaultdict(list)
    for name, path in modules().items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    assert not {cls: names for cls, names in homes.items() if len(names) > 1}


NAMED_IN_TEXT = {
    # by records: tests ask for measures, sources, drivers by their names
    "measures.alignment", "measures.canonical", "measures.catalogue", "measures.dissimilarity",
    "measures.distances", "measures.neighbours", "measures.shape", "pipelines.sources.catalogue",
    "attacks.handover",
    # by what a package hands on
    "pipelines.streams.dali_stream", "pipelines.streams.resident",
    "reproduce.builder", "runs.engines.ray",
}  # fmt: skip
WITHOUT_TEST = {
    # started as programs, by hand or on a GPU machine
    "bench.harness.gpu_probe", "bench.harness.outcomes", "bench.suites.ceilings",
    "bench.suites.cpp", "bench.suites.solo", "bench.suites.startup",
    "bench.suites.step", "__main__",
}  # fmt: skip


def _imported_by_tests() -> set[str]:
    """Modules that a test file is named for, imports, or names in a text."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        inner = path.relative_to(ROOT / "tests").with_name(path.stem.removeprefix("test_")).parts
        found |= {".".join(("fula_fast", *inner))}
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value, node.value.partition(":")[0]}
    return found & modules().keys()


def test_every_module_has_its_test():
    """One that imports it, or that imports the module of which it is a part. The files of a kernel
    are named for their roles, and tested under its noun."""
    tested = _imported_by_tests()
    near = tested.union(*map(imports, tested))
    lone = {name for name, path in modules().items() if path.name != "__init__.py"} - near
    lone = {name.removeprefix("fula_fast.") for name in lone}
    assert {n for n in lone if not n.startswith("kernels.")} == NAMED_IN_TEXT | WITHOUT_TEST
