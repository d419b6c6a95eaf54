"""fula_core by itself: built with CMake alone, its C tests, its install, its GPU side.

One build serves them all; the sanitizers have their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pip's cmake and ninja


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


def build(folder: Path, *options: str) -> Path:
    """Configure (again, with more options) and build in `folder`."""
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool, path=TOOLS):
            pytest.skip(f"{tool} is not installed")
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *options)
    run("cmake", "--build", folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def library(folder: Path) -> Path:
    """The plain build."""
    return build(folder, "-DFULA_BUILD_TESTS=ON")


@pytest.fixture(scope="module")
def gpu_library(folder: Path) -> Path:
    """libfula_core.so with the GPU kernels embedded; no CUDA is needed to build it."""
    return next(build(folder, "-DFULA_CUDA=ON").rglob("libfula_core.so"))


def ctest(folder: Path) -> None:
    output = run("ctest", "--test-dir", folder, "--output-on-failure")
    assert "100% tests passed" in output


@pytest.mark.slow
def test_c_tests(library: Path) -> None:
    """Numbers on every instruction set, refusals, threads, and the fuzzer of argument checks."""
    ctest(library)


@pytest.mark.slow
def test_install_needs_neither_python_nor_torch(library: Path, tmp_path: Path) -> None:
    """Installed, found by `find_package` in a program of its own, and its numbers checked."""
    cache = (library / "CMakeCache.txt").read_text()
    assert "Python_" not in cache and "torch" not in cache.lower()
    prefix, host = tmp_path / "prefix", tmp_path / "host"
    run("cmake", "--install", library, "--prefix", prefix)
    source = ROOT / "tests" / "embed" / "cpp"
    run("cmake", "-S", source, "-B", host, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", host)
    assert "weights off by" in run(host / "embed")


@pytest.mark.slow
def test_gpu_launches_give_the_references_numbers(gpu_library: Path, tmp_path: Path) -> None:
    fake = tmp_path / "libfake_cuda.so"
    run("gcc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", fake,
        HERE / "fake_cuda.c")  # fmt: skip
    output = run(
        sys.executable, HERE / "emulated_cuda.py", gpu_library,
        TRITON_INTERPRET="1", FULA_LIBCUDA=str(fake),
    )  # fmt: skip
    missed = output.split("never launched:")[1].split()
    assert missed == ["cast_f32_any", "cast_f32_fast"]  # float32 needs no cast


@pytest.mark.slow
def test_without_a_driver_the_gpu_library_says_so(gpu_library: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch
from emulated_cuda import OnDevice
lib = OnDevice({str(gpu_library)!r})
x, t, d = torch.randn(4, 16), torch.randn(2, 16), torch.empty(2, 2)
assert lib.lib.fula_hint_terms_forward(*map(lib.argument, (1, x, t, d))) == 8
print(lib.message())
"""
    assert "no CUDA driver" in run(sys.executable, "-c", program, FULA_LIBCUDA="libnothing.so")


@pytest.mark.gpu
def test_numbers_on_the_device(gpu_library: Path) -> None:
    assert "numbers agree" in run(sys.executable, HERE / "emulated_cuda.py", gpu_library)


@pytest.mark.slow
def test_c_tests_under_the_sanitizers(tmp_path: Path) -> None:
    ctest(build(tmp_path, "-DFULA_BUILD_TESTS=ON", "-DFULA_SANITIZE=ON"))
