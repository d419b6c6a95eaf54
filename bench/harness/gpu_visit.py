"""Prepare a visit to a bare GPU machine: `make gpu-visit`.

    python -m bench.harness.gpu_visit               wheels and images into .gpu/, and the commands
    python -m bench.harness.gpu_visit --dali        NVIDIA DALI too, in parts carried by turns

Such a machine has PyTorch, Triton and what tests need, but no network: what it lacks travels in an
ignored folder, with the tracked files at most LIMIT bytes. Downloads wheels with pip for its Python
(3.12), cuts the first 1,024 CIFAR-10 test images out of the archive in FULA_TEST_DATA, and prints
the exact command lines, to be run in the checkout's root there, where $OUT is what comes back.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 64 * 2**20
PYTHON = "3.12"
IMAGES = 1024
PACKAGES = (
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
    "tomli-w",
)  # fmt: skip
PEERS = ("torchattacks", "pyautoattack")
"""What only the second plan compares with: most of what is carried."""
DALI = (
    "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg", "nvidia-nvjpeg2k-cu13",
    "nvidia-nvtiff-cu13", "nvidia-libnvcomp-cu13", "nvtx", "astunparse", "gast", "optree",
    "makefun", "libcst", "six",
)  # fmt: skip
PART = 56 * 2**20
"""Bytes of one part of DALI; the tracked files travel with each."""
_SITE = "/tmp/fula-site"
_TAGS = ("2_28", "2_27", "2_24", "2_17", "2_12")


def platforms() -> list[str]:
    """pip's options for wheels of x86-64 Linux; it takes names of platforms literally."""
    names = [f"manylinux_{tag}_x86_64" for tag in _TAGS] + ["manylinux2014_x86_64"]
    return [option for name in names for option in ("--platform", name)]


def download(packages: Sequence[str], folder: Path) -> None:
    """Wheels of these packages alone, of the versions installed here where there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
        "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp",
        *platforms(), "--dest", str(folder), *map(_pinned, packages),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def _pinned(package: str) -> str:
    """With the version that was tested here."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return package


def save_images(folder: Path, count: int = IMAGES) -> Path:
    """The first CIFAR-10 test images, as `bench.suites.attack` reads them."""
    from fula_fast.bench.suites.attack import CUT_IMAGES, cifar_images

    x, labels = cifar_images(count)
    path = folder / CUT_IMAGES
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (x * 255).round().numpy().astype(np.uint8)
    np.savez_compressed(path, pixels=pixels, labels=labels.numpy())
    return path


def pack_dali(wheels: Path, folder: Path, size: int = PART) -> list[Path]:
    """The wheels' files but those for other Pythons, packed smaller, in parts of `size` bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch) / "site"
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site, [n for n in archive.namelist() if _wanted(n)])
        packed = Path(scratch) / "dali.tar.xz"
        with tarfile.open(packed, "w:xz", preset=6) as archive:
            archive.add(site, ".")
        return split(packed, folder, size)


def _wanted(name: str) -> bool:
    """Not another Python's module, and no headers."""
    other = "cpython-3" in name and f"cpython-{PYTHON.replace('.', '')}-" not in name
    return not (other or name.endswith((".h", ".hpp", ".cuh")) or "/include/" in name)


def split(file: Path, folder: Path, size: int) -> list[Path]:
    """A file in parts of at most `size` bytes, each in a folder of its own: `0/part`, `1/part`…"""
    parts = []
    with file.open("rb") as source:
        while piece := source.read(size):
            part = folder / str(len(parts)) / "part"
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(piece)
            parts.append(part)
    return parts


def size_of(folder: Path) -> int:
    """Bytes of its files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def tracked_size() -> int:
    """Bytes of what git would carry: tracked files, and others that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = {ROOT / name for name in listed.stdout.split("\0") if name}
    return sum(file.lstat().st_size for file in files if file.is_file())


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def command_line(plan: str, folder: Path, commit: str) -> str:
    """What is run there for a plan, with `folder` carried along."""
    peers = f" {folder}/peers/*.whl" if plan == "second" else ""
    install = (
        f"python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade"
        f" --target {_SITE} {folder}/wheels/*.whl{peers}"
    )
    setting = f"PYTHONPATH={_SITE} FULA_TEST_DATA=$PWD/{folder}/data"
    check = f'python3 -m bench.harness.gpu_check --plan {plan} --commit {commit} --out "$OUT"'
    return f"{install}; {setting} {check}"


def unpack_lines(count: int, folder: Path) -> list[str]:
    """What is run there for each part of DALI, on one machine in this order."""
    gather = [f"cat {folder}/dali/{number}/part >> /tmp/dali.tar.xz" for number in range(count)]
    last = f"mkdir -p {_SITE} && tar -xJf /tmp/dali.tar.xz -C {_SITE}"
    return [*gather[:-1], f"{gather[-1]} && {last}"]


def instructions(folder: Path, parts: int, commit: str) -> str:
    """The command lines, and what each carries."""
    base = f"{folder}/wheels, {folder}/data"
    lines = [
        f"carry {base}, and {folder}/peers for the second plan; at most {LIMIT >> 20} MiB with the"
        f" tracked files, {_megabytes()}:"
    ]
    lines += [f"\n{plan}:\n{command_line(plan, folder, commit)}" for plan in ("first", "second")]
    for number, line in enumerate(unpack_lines(parts, folder) if parts else ()):
        lines.append(f"\ndali, part {number}: carry {folder}/dali/{number}:\n{line}")
    if parts:
        lines.append(f"\ndali, then carry {base} again:\n{command_line('dali', folder, commit)}")
    return "\n".join(lines)


def _megabytes() -> str:
    return f"{tracked_size() / 2**20:.1f} MiB"


def prepare(folder: Path, dali: bool) -> int:
    """Everything into `folder`; returns the number of DALI's parts. Raises `SystemExit` where it is
    too much to carry."""
    shutil.rmtree(folder, ignore_errors=True)
    download(PACKAGES, folder / "wheels")
    download(PEERS, folder / "peers")
    save_images(folder / "data")
    total = size_of(folder) + tracked_size()
    if total > LIMIT:
        raise SystemExit(f"{folder} and the tracked files are {total} bytes: at most {LIMIT}")
    print(f"{folder}: {size_of(folder) / 2**20:.1f} MiB, with the tracked files {total} bytes")
    if not dali:
        return 0
    shutil.copy(Path(os.environ["FULA_TEST_DATA"]) / "tiny-imagenet-10.tar.xz", folder / "data")
    with tempfile.TemporaryDirectory() as wheels:
        download(DALI, Path(wheels))
        return len(pack_dali(Path(wheels), folder / "dali"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, and print the commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dali", action="store_true", help="NVIDIA DALI too, in parts")
    parser.add_argument("--folder", type=Path, default=Path(".gpu"), help="ignored by git")
    options = parser.parse_args(arguments)
    if not os.environ.get("FULA_TEST_DATA"):
        raise SystemExit("FULA_TEST_DATA is unset: it names the folder with cifar10-jpeg.tar.xz")
    os.chdir(ROOT)
    parts = prepare(options.folder, options.dali)
    print(instructions(options.folder, parts, _commit()))


if __name__ == "__main__":
    main()
