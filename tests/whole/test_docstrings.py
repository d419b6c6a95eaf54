"""Public docstrings: tensors with shapes, `FulaError` where it is raised; their examples run."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {"fula_fast": "fula_fast", "kernels": "fula_fast.kernels"}
HOMES |= {"pipelines": "fula_fast.pipelines", "bench": "fula_fast.bench"}

SHAPE = re.compile(r"\((\w+,?|\.\.\.|\*\w+)?\)|\([^()]*,[^()]*\)|any shape|\d-D")
"""(B, C), (n,), (*sizes), (...), and () for a number."""

Function = ast.FunctionDef


def functions(path: Path) -> Iterator[tuple[str, Function, str]]:
    """Public functions and methods of public classes: name, node, docstring.

    A method without one has its base's, but for `forward`: that is what its class is for.
    """
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, Function):
            yield node.name, node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, Function):
                    own = ast.get_docstring(inner)
                    if own is None and inner.name == "forward":
                        own = ast.get_docstring(node)
                    if own is not None:
                        yield f"{node.name}.{inner.name}", inner, own


def public() -> Iterator[tuple[str, Function, str]]:
    """Those of every file. Not triton.jit functions, device code that has pointers, and overloads,
    which have no body."""
    for home in HOMES:
        for path in sorted((ROOT / home).rglob("*.py")):
            for name, node, doc in functions(path):
                marks = " ".join(map(ast.unparse, node.decorator_list))
                written = "jit" not in marks and "overload" not in marks
                if written and not node.name.startswith("_"):
                    yield f"{path.relative_to(ROOT)}: {name}", node, doc


def takes_tensors(node: Function) -> bool:
    given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    texts = [ast.unparse(each.annotation) for each in given if each.annotation]
    return any(re.search(r"\bTensor\b|\bndarray\b", text) for text in texts)


def raises(node: Function) -> bool:
    found = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc is not None]
    return any(ast.unparse(each).startswith("FulaError(") for each in found)


def test_functions_on_tensors_give_shapes():
    assert not [
        name for name, node, doc in public() if takes_tensors(node) and not SHAPE.search(doc)
    ]


def test_functions_that_raise_say_so():
    """A command's docstring is its help, and every command may refuse."""
    silent = [name for name, node, doc in public() if raises(node) and "FulaError" not in doc]
    assert not [name for name in silent if not name.startswith("fula_fast/cli/")]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(x: Tensor): 'Its mean.'", (True, False, False)),
        ("def f(x: np.ndarray, y: int): 'Rows (n, d) to (n,).'", (True, True, False)),
        ("def f(x: int):\n 'A count (at most 3).'\n raise FulaError('x')", (False, False, True)),
    ],
)
def test_what_is_looked_at(source, found):
    node = ast.parse(source).body[0]
    shape = bool(SHAPE.search(ast.get_docstring(node)))
    assert (takes_tensors(node), shape, raises(node)) == found


def with_examples() -> list[str]:
    return sorted(
        ".".join((prefix, *path.relative_to(ROOT / home).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for home, prefix in HOMES.items()
        for path in (ROOT / home).rglob("*.py")
        if ">>> " in path.read_text("utf-8")
    )


@pytest.mark.parametrize("name", with_examples())
def test_examples_run(name):
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testmod(import_module(name), optionflags=options)
    assert tried and not failed


def test_what_most_readers_meet_first_has_examples():
    wanted = {"api", "results", "study.toml", "study.expand", "methods.registry", "measures.cka"}
    assert {f"fula_fast.{name}" for name in wanted} <= set(with_examples())
