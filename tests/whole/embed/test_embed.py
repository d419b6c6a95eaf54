"""The kernels inside other people's programs: C++ through the installed package, Python by import.

The C++ program's step on a GPU is tested with the library built for one: tests/kernels/cpp.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fula_fast import kernels

HERE = Path(__file__).parent


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pip's cmake


def run(*command: object, cwd: Path | None = None) -> str:
    result = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": PATH},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build_and_run(prefix: Path, build: Path) -> str:
    """Configure, build and run the host program against the package installed in `prefix`."""
    run("cmake", "-S", HERE / "cpp", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    return run(build / "embed")


def test_cpp_program_uses_the_library_in_the_wheel(tmp_path: Path) -> None:
    core = pytest.importorskip("fula_fast.kernels._core")
    prefix = Path(core.__file__).parent / "fula_core"
    output = build_and_run(prefix, tmp_path / "build")
    assert "weights off by" in output
    assert "on the CPU only: this fula_core was built without -DFULA_CUDA=ON" in output


@pytest.mark.slow
def test_python_program_trains_as_plain_pytorch_does(tmp_path: Path) -> None:
    assert "largest difference" in run(sys.executable, HERE / "foreign_loop.py", cwd=tmp_path)


def test_the_pages_python_runs_and_says_what_it_computes(tmp_path: Path) -> None:
    """Its two blocks, one after the other; the term is that of plain PyTorch."""
    page = Path(kernels.__file__).parent / "README.md"
    if not page.exists():  # a wheel holds the code alone
        page = HERE.parents[2] / "kernels" / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    names = runpy.run_path(str(script))
    y, target = names["y"], names["target"]
    expected = (y - target).norm() / target.norm()
    assert names["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(blocks) == 2 and names["weight"].grad.abs().sum() > 0
