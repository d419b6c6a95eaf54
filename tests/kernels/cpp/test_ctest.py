"""The C tests of fula_core, plain and under the sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pip's cmake


def run(*command: object) -> str:
    result = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": PATH},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["OFF", "ON"])
def test_ctest(tmp_path: Path, sanitize: str) -> None:
    """Numbers on every instruction set, refusals, threads, and the fuzzer of argument checks."""
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DFULA_BUILD_TESTS=ON", f"-DFULA_SANITIZE={sanitize}")
    run("cmake", "--build", tmp_path, "-j", os.cpu_count() or 1)
    output = run("ctest", "--test-dir", tmp_path, "--output-on-failure")
    assert "100% tests passed" in output
