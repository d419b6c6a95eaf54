"""A visit to a bare GPU machine, emulated: nothing but what such a machine holds can be imported."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fula_fast.bench.harness import gpu_visit
from fula_fast.bench.suites import attack

ROOT = gpu_visit.ROOT
BARE = Path(__file__).parent / "bare"
ABSENT = {"pyautoattack", "torchattacks", "nvidia", "tomli_w", "timm", "cv2", "submitit", "ray"}
CARRIED = (
    "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions",
    "tomli_w", "torchattacks", "pyautoattack",
)  # fmt: skip


@pytest.fixture
def wheels(tmp_path) -> Path:
    """What `make gpu-visit` carries, as pip lays it out: links to what is installed here."""
    site = tmp_path / "site"
    site.mkdir()
    for name in CARRIED:
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (site / place.name).symlink_to(place)
    return site


def there(*command: str, paths=(), **variables: str) -> subprocess.CompletedProcess:
    """A command of the interpreter on the emulated machine, in the checkout's root."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "FULA", "COV"))}
    settings = {"PYTHONPATH": os.pathsep.join(map(str, (BARE, *paths))), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=kept | settings | variables, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def checked(out: Path, *options: str, paths=(), **variables: str) -> dict[str, dict]:
    """A dry run's parts by name."""
    command = ("-m", "bench.harness.gpu_check", "--dry-run", "--out", str(out), *options)
    answer = there(*command, paths=paths, **variables)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (report,) = out.glob("*.json")
    return {part["name"]: part for part in json.loads(report.read_text())["parts"]}


@pytest.mark.slow
def test_the_machine_holds_no_more_than_it_should(wheels):
    tried = (
        "pydantic",
        "tomli_w",
        "pyautoattack",
        "torchattacks",
        "nvidia.dali",
        "fula_fast",
        "timm",
    )
    ask = (
        "import importlib.util as u, torch, triton, pytest, hypothesis, sklearn, pyarrow\n"
        f"print([n for n in {tried} if u.find_spec(n)])"
    )
    assert there("-P", "-c", ask).stdout == "[]\n"
    assert there("-P", "-c", ask, paths=[wheels]).stdout == f"{list(tried[:4])}\n"


@pytest.mark.slow
def test_kernels_and_their_benches_need_no_pydantic(tmp_path):
    """The first question on a new GPU is answered even where a carried wheel does not fit."""
    parts = checked(tmp_path / "first", "--plan", "first", "--only", "nouns,captured,plain-36")
    status = {name: part["status"] for name, part in parts.items()}
    assert status == {"nouns": "passed", "captured": "skipped", "plain-36": "skipped"}
    assert parts["captured"]["detail"] == "pydantic is not installed"
    found = parts["nouns"]["reports"][0]["summary"][0]
    assert found["value"] == found["target"] > 10
    second = checked(tmp_path / "second", "--plan", "second", "--only", "kernels,grid")
    status = {name: part["status"] for name, part in second.items()}
    assert status == {"kernels": "passed", "grid": "skipped"}


@pytest.mark.slow
def test_kernel_tests_need_no_pydantic(tmp_path):
    parts = checked(tmp_path, "--plan", "first", "--only", "kernel-tests")
    assert parts["kernel-tests"]["status"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["first", pytest.param("second", marks=pytest.mark.long), "dali"])
def test_every_part_of_a_plan_runs_with_what_is_carried(plan, tmp_path, wheels):
    parts = checked(tmp_path / "out", "--plan", plan, paths=[wheels])
    status = {part["status"] for part in parts.values()}
    assert status == ({"skipped"} if plan == "dali" else {"passed"})
    archive = tmp_path / "out" / f"gpu-check-{plan}-cpu.tar.gz"
    assert len(list(archive.parent.iterdir())) == 2 and archive.stat().st_size > 100


def test_no_test_file_needs_an_absent_package_at_import():
    """A file that cannot be read costs all its tests; `importorskip` costs those that need it."""
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / "tests").rglob("*.py")
        for name in _imported(ast.parse(file.read_text()))
        if name in ABSENT
    }
    assert not found


def _imported(module: ast.Module) -> set[str]:
    """Packages that importing the module imports."""
    plain = (
        alias.name for node in module.body if isinstance(node, ast.Import) for alias in node.names
    )
    froms = (
        node.module or ""
        for node in module.body
        if isinstance(node, ast.ImportFrom) and not node.level
    )
    return {name.partition(".")[0] for name in (*plain, *froms)}


def test_cut_images_are_those_of_the_archive(data_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FULA_TEST_DATA", str(data_folder))
    x, labels = attack.cifar_images(40)
    gpu_visit.save_images(tmp_path, 40)
    monkeypatch.setenv("FULA_TEST_DATA", str(tmp_path))
    cut, known = attack.cifar_images(30)
    assert np.array_equal(cut, x[:30]) and np.array_equal(known, labels[:30])
    with pytest.raises(attack.FulaError, match="holds 40 images"):
        attack.cifar_images(41)


def test_a_large_wheel_travels_in_parts_without_other_pythons(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    noise = os.urandom(5000)
    with zipfile.ZipFile(wheels / "a.whl", "w") as wheel:
        wheel.writestr("a/lib.so", noise)
        wheel.writestr("a/x.cpython-312-x86_64-linux-gnu.so", "ours")
        wheel.writestr("a/x.cpython-311-x86_64-linux-gnu.so", "another's")
        wheel.writestr("a/include/x.h", "no need")
    parts = gpu_visit.pack_dali(wheels, tmp_path / "dali", size=2000)
    assert len(parts) == 3 and all(part.stat().st_size <= 2000 for part in parts)
    folder = tmp_path / "there"
    folder.mkdir()
    joined = "cat " + " ".join(map(str, parts)) + f" | tar -xJ -C {folder}"
    subprocess.run(["sh", "-c", joined], check=True)
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert files == {"a/lib.so": noise, "a/x.cpython-312-x86_64-linux-gnu.so": b"ours"}


def test_what_is_too_much_to_carry_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_visit, "download", lambda packages, folder: folder.mkdir(parents=True))
    monkeypatch.setattr(gpu_visit, "save_images", lambda folder: None)
    monkeypatch.setattr(gpu_visit, "LIMIT", 1000)
    with pytest.raises(SystemExit, match="at most 1000"):
        gpu_visit.prepare(tmp_path / "carried", dali=False)


def test_the_commands_are_short_and_name_each_part_of_dali():
    said = gpu_visit.instructions(Path(".gpu"), 3, "abc")
    lines = [line for line in said.splitlines() if "/tmp/" in line]
    assert len(lines) == 2 + 3 + 1 and all(len(line) < 2000 for line in lines)
    assert ["--plan first" in lines[0], "dali/2/part" in lines[4], "--plan dali" in lines[5]] == [
        True
    ] * 3
