"""The house keeps its plan: imports go down, no circles, one noun per concept, light planning."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {"fula_fast": "fula_fast", "kernels": "fula_fast.kernels"}
HOMES |= {"pipelines": "fula_fast.pipelines", "bench": "fula_fast.bench"}

LAYERS = (
    {"errors", "progress", "files"},
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

LOOSE = {"__init__", "__main__", "api", "errors", "progress", "results"}
SAME_NAME = {
    # a benchmark is named for what it measures
    "agreement", "attack", "data", "precision", "record", "solo", "grid", "kernels",
    "roofline", "similarity",
    # the augmentation of NumPy, and its kernel
    "augment",
    # what is known by name, of methods and of measures; an experiment's driver and its stream
    "registry", "noise",
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


def test_no_two_public_classes_of_one_name():
    homes = defaultdict(list)
    for name, path in modules().items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    assert not {cls: names for cls, names in homes.items() if len(names) > 1}
