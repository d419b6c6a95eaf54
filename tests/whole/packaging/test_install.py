"""What an install makes importable: the package with its parts, never their bare names."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[3]
PARTS = ("kernels", "pipelines", "bench")
PROBE = """
import importlib.util, sys
import fula_fast
assert "torch" not in sys.modules and "numpy" not in sys.modules
for part in ("kernels", "pipelines", "bench"):
    spec = importlib.util.find_spec(part)
    assert spec is None or spec.origin is None or "fula" not in spec.origin, spec
    assert importlib.util.find_spec(f"fula_fast.{part}") is not None, part
import fula_fast.bench, fula_fast.kernels, fula_fast.pipelines
import fula_fast.kernels._core
from importlib.resources import files
assert files("fula_fast").joinpath("specs/quickstart.toml").read_text()
print("ok")
"""


def run(*command: object, cwd: Path) -> str:
    result = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_this_install(tmp_path: Path) -> None:
    assert run(sys.executable, "-c", PROBE, cwd=tmp_path).endswith("ok\n")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this run's installs compile: what one of them has compiled, the others take."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "installs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout with this environment's build tools."""
    folder = tmp_path_factory.mktemp("wheel")
    compiled(sys.executable, built, "wheel", "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


def compiled(python: object, built: Path, command: str, *arguments: object) -> None:
    """A pip command that compiles in `built`, one at a time."""
    with FileLock(built.with_suffix(".lock")):
        pip(
            python,
            command,
            "--no-deps",
            "--no-build-isolation",
            "-C",
            f"build-dir={built}",
            *arguments,
        )


def pip(python: object, *arguments: object) -> None:
    run(python, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=ROOT)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """The Python of a new environment that has this one's dependencies, but not the package."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip()
    others = [p for p in sys.path if p.endswith("site-packages")]
    Path(site, "dependencies.pth").write_text("\n".join(others))
    yield python


@pytest.mark.slow
def test_wheel_in_a_new_environment(wheel: Path, empty: Path, tmp_path: Path) -> None:
    pip(empty, "install", "--no-deps", wheel)
    assert run(empty, "-c", PROBE, cwd=tmp_path).endswith("ok\n")
    assert "sweep" in run(empty.parent / "fula-fast", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_editable_in_a_new_environment(built: Path, empty: Path, tmp_path: Path) -> None:
    compiled(empty, built, "install", "-e", ROOT)
    assert run(empty, "-c", PROBE, cwd=tmp_path).endswith("ok\n")
    found = run(empty, "-c", "import fula_fast.kernels as k; print(k.__file__)", cwd=tmp_path)
    assert Path(found.strip()).parent == ROOT / "kernels"


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    """Python, recipes, cached descriptions, templates, device binaries; the C library; no sources."""
    names = set(ZipFile(wheel).namelist())
    places = {"fula_fast": "fula_fast"} | {part: f"fula_fast/{part}" for part in PARTS}
    tracked = run("git", "ls-files", *places, cwd=ROOT).split()
    wanted = {
        f"{places[path.split('/')[0]]}/{path.split('/', 1)[1]}"
        for path in tracked
        if not path.startswith("kernels/cpp/")
    }
    assert wanted <= names
    core = "fula_fast/kernels/fula_core"
    assert {
        f"{core}/include/fula_core.h",
        f"{core}/lib/libfula_core.so",
        f"{core}/lib/cmake/fula_core/fula_core-config.cmake",
    } <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not any(n.startswith(("tests/", "kernels/", "fula_fast/kernels/cpp/")) for n in names)
