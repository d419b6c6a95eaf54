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
EMBED = ROOT / "tests" / "whole" / "embed" / "cpp"
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


@pytest.fixture(scope="module")
def gpu_prefix(gpu_library: Path, folder: Path) -> Path:
    """Where that build is installed."""
    run("cmake", "--install", folder, "--prefix", folder / "prefix")
    return folder / "prefix"


@pytest.fixture(scope="module")
def stand_in(folder: Path) -> Path:
    """A driver library that hands launches to Triton's interpreter."""
    fake = folder / "libfake_cuda.so"
    run("gcc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", fake,
        HERE / "fake_cuda.c")  # fmt: skip
    return fake


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
    assert "weights off by" in run(host_program(prefix, host))


def host_program(prefix: Path, folder: Path) -> Path:
    """tests/whole/embed's program, built against the package installed in `prefix`."""
    run("cmake", "-S", EMBED, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder)
    return folder / "embed"


@pytest.mark.slow
def test_gpu_launches_give_the_references_numbers(gpu_library: Path, stand_in: Path) -> None:
    """Wherever the tensors lie, whatever context the thread has."""
    output = run(
        sys.executable, HERE / "emulated_cuda.py", gpu_library,
        TRITON_INTERPRET="1", FULA_LIBCUDA=str(stand_in),
    )  # fmt: skip
    missed = output.split("never launched:")[1].split()
    assert missed == ["cast_f32_any", "cast_f32_fast"]  # float32 needs no cast


@pytest.mark.slow
def test_a_host_program_steps_on_the_stand_in(gpu_prefix: Path, stand_in: Path) -> None:
    """As a shared library, so that its process can be the one that runs the launches."""
    program = gpu_prefix / "libembed.so"
    library = gpu_prefix / "lib"
    run("g++", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", EMBED / "main.cpp",
        "-I", gpu_prefix / "include", "-L", library, "-lfula_core", f"-Wl,-rpath,{library}", "-ldl",
        "-o", program)  # fmt: skip
    output = run(
        sys.executable, HERE / "emulated_host.py", program,
        TRITON_INTERPRET="1", FULA_LIBCUDA=str(stand_in),
    )  # fmt: skip
    assert "weights off by" in output and "on the GPU: numbers off by" in output
    assert "launches of 0 kernels" not in output


@pytest.mark.slow
def test_a_host_program_without_a_driver_stays_on_the_cpu(gpu_prefix: Path, tmp_path: Path) -> None:
    program = host_program(gpu_prefix, tmp_path)
    output = run(program, FULA_LIBCUDA="libnothing.so")
    assert "weights off by" in output and "on the CPU only: there is no CUDA driver" in output


@pytest.mark.gpu
def test_a_host_program_steps_on_the_device(gpu_prefix: Path, tmp_path: Path) -> None:
    assert "on the GPU: numbers off by" in run(host_program(gpu_prefix, tmp_path))


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
