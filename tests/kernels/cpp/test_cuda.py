"""The GPU side of fula_core: every launch through a stand-in driver, and for real where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pip's cmake


def run(*command: object, **variables: str) -> str:
    result = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": TOOLS} | variables,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libfula_core.so with the GPU kernels embedded; no CUDA is needed to build it."""
    if not shutil.which("cmake", path=TOOLS):
        pytest.skip("cmake is not installed")
    build = tmp_path_factory.mktemp("cuda")
    run("cmake", "-S", ROOT, "-B", build, "-DFULA_CUDA=ON")
    run("cmake", "--build", build, "-j", os.cpu_count() or 1)
    return next(build.rglob("libfula_core.so"))


@pytest.mark.slow
def test_launches_give_the_references_numbers(library: Path, tmp_path: Path) -> None:
    fake = tmp_path / "libfake_cuda.so"
    run("gcc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", fake,
        HERE / "fake_cuda.c")  # fmt: skip
    output = run(
        sys.executable, HERE / "emulated_cuda.py", library,
        TRITON_INTERPRET="1", FULA_LIBCUDA=str(fake),
    )  # fmt: skip
    missed = output.split("never launched:")[1].split()
    assert missed == ["cast_f32_any", "cast_f32_fast"]  # float32 needs no cast


@pytest.mark.slow
def test_without_a_driver_the_library_says_so(library: Path) -> None:
    program = f"""
import ctypes, sys
sys.path.insert(0, {str(HERE)!r})
import torch
from emulated_cuda import OnDevice
lib = OnDevice({str(library)!r})
x, t, d = torch.randn(4, 16), torch.randn(2, 16), torch.empty(2, 2)
assert lib.lib.fula_hint_terms_forward(*map(lib.argument, (1, x, t, d))) == 8
print(lib.message())
"""
    assert "no CUDA driver" in run(sys.executable, "-c", program, FULA_LIBCUDA="libnothing.so")


@pytest.mark.gpu
def test_numbers_on_the_device(library: Path) -> None:
    assert "numbers agree" in run(sys.executable, HERE / "emulated_cuda.py", library)
