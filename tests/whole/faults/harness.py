"""A run of forty tiny cells in which the n-th file operation fails, for every n: then a resume.

    python tests/whole/faults/harness.py --sample 200 --jobs 2                    # a keyed sample
    python tests/whole/faults/harness.py --save bench/results/faults.json         # every point: hours

The run trains two donors, decodes images into the cache, makes two waves, tables and report, and an
attack. Every point is a process of its own, forked from this one, which has imported everything;
after its fault a second process resumes without any. A point holds where table, stitches and attack
are those of an undisturbed run, bit for bit, and nothing is left lying about: no temporary file, no
process. Networks are of three convolutions and plots are empty, since neither changes which files
are written.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

KINDS = ("kill before", "kill after", "ENOSPC", "EIO", "short write", "EACCES")
_APPLY = {
    "kill before": "cwsrum", "kill after": "cwsrum", "ENOSPC": "cwsrm", "EIO": "ocwsrumidt",
    "short write": "w", "EACCES": "ocrumd",
}  # fmt: skip
"""What can happen to opening (o), making (c), reading (i), writing (w), flushing (s), renaming (r)
and removing (u) a file, to making (m) and listing (d) a folder, and to asking what is there (t)."""

_MEASURES = ("accuracy", "agreement_soft", "term_stitch", "loss", "front_hash", "end_hash")
SPEC = {
    "name": "faults",
    "data": {"source": "imagefolder", "size": 8, "options": {"decoder": "pillow"}},
    "donors": {
        n: {"model": "tiny", "width": 2, "seed": s, "epochs": 1, "batch_size": 12} for s, n in enumerate("ab")
    },
    "grid": {
        "front": "a", "end": "b", "sites": [[1, 1], [1, 2], [2, 2], [2, 3], [3, 3]],
        "methods": ["dm", "hint", "tlm", "fula"], "seeds": [0, 1],
    },
    "protocol": {"epochs": 2, "batch_size": 12, "dm_samples": 12, "crop_padding": 1, "flip": False},
    "engine": {"executor": "wave", "precision": "fp32", "device": "cpu", "mode": "eager"},
}  # fmt: skip


def add_tiny_network() -> None:
    """The architecture `tiny`: three convolutions with batch norm, a site behind each."""
    from fula_fast.models import families

    families.VGGS["tiny"] = families._VGG((1, 1, 1), (1, 2, 3))
    families.DEFAULTS["tiny"] = families.DEFAULTS["vgg16"]


def _draw_nothing() -> None:
    from fula_fast.report import page

    page.stitching_plot = page.heat_map = lambda *_: None
    page.rendered = lambda _: {".svg": b"plot", ".png": b"plot"}


def make_data(folder: Path) -> None:
    """Two classes of noise images, 24 to train and 8 to test."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("dark", "light"):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 128, (8, 8, 3)) + 127 * (name == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")


def work(root: Path, data: Path) -> None:
    """The whole run, from whatever is there."""
    import fula_fast
    from fula_fast.runs.attack import attack_run

    spec = SPEC | {"data": SPEC["data"] | {"data_dir": str(data)}}
    resume = os.path.lexists(root / "run/spec.json")
    fula_fast.sweep(spec, root / "run", resume=resume, quiet=True, donors=root / "donors")
    attack_run(root / "run", "pgd-1", limit=4, donors=root / "donors")


def outcome(root: Path) -> dict[str, Any]:
    """What a run ended with, and what lies about."""
    from fula_fast.files.sealed import digest_of
    from fula_fast.store import Store

    store = Store.open(root / "run")
    stitches = {r["cell"]: _content(store.stitch(r["cell"])) for r in store.rows()}
    attacked = Store.open(root / "run/attacks/pgd-1").rows()
    rows = [[r["cell"], *(r.get(n) for n in _MEASURES)] for r in store.rows()]
    robust = [[r["cell"], r["robust_accuracy"], r["robust_agreement_soft"]] for r in attacked]
    shards = {p.stem for p in (root / "run/cells").glob("*/*.json")}
    found = [p for p in (root / "run/stitches").glob("*/*") if p.stem not in shards]
    found += [*(root / "run/checkpoints").glob("*"), *(root / "run/writers").glob("*")]
    found += root.rglob("*.tmp")
    left = sorted(str(p.relative_to(root)) for p in found)
    numbers = [rows, stitches, robust, len((root / "run/results.csv").read_text().split("\n"))]
    return {"numbers": digest_of(numbers), "left": left, "cells": len(rows)}


def _content(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def forked(task: Callable[[], Any]) -> tuple[int, Any]:
    """(exit status, what `task` returned, or the last line of its error) in a process of its own."""
    return _ended(*_started(task))


def _started(task: Callable[[], Any]) -> tuple[int, IO[str]]:
    told = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed where it is read
    child = os.fork()
    if child == 0:
        code = 0
        try:
            found = task()
        except BaseException as error:  # noqa: BLE001 - the parent judges it
            code, found = _judged(error)
        told.write(json.dumps(found))
        told.flush()
        os._exit(code)
    return child, told


def _ended(child: int, told: IO[str]) -> tuple[int, Any]:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with told:
        told.seek(0)
        text = told.read()
    return status, json.loads(text) if text else None


def _judged(error: BaseException) -> tuple[int, str]:
    """2 for what the command line tells in one line, 1 for a traceback."""
    from fula_fast import FulaError

    if isinstance(error, FulaError | OSError):
        return 2, str(error)
    return 1, "".join(traceback.format_exception(error)[-3:])


@dataclass(frozen=True)
class Runner:
    """Runs points in `base`, on the images in `data`; `expected`: digest of the numbers."""

    shim: ctypes.CDLL
    base: Path
    data: Path
    expected: str = ""

    def counted(self) -> tuple[list[str], dict[str, Any]]:
        """The calls of an undisturbed run, and its outcome."""
        root = self._fresh()

        def task() -> Any:
            self.shim.fault_arm(-1, 0)
            work(root, self.data)
            log = self.shim.fault_log().decode(errors="replace")
            return log.splitlines(), outcome(root)

        status, told = forked(task)
        if status != 0:
            raise SystemExit(f"the undisturbed run ended with {status}: {told}")
        return told

    def point(self, number: int, kind: str) -> tuple[str, str | None]:
        """How the disturbed run ended, and why the point does not hold; None where it does."""
        root = self._fresh()

        def disturbed() -> bool:
            self.shim.fault_arm(number, KINDS.index(kind) + 1)
            work(root, self.data)
            return bool(self.shim.fault_struck())

        def resumed() -> dict[str, Any]:
            self.shim.fault_arm(-1, 0)
            work(root, self.data)
            return outcome(root)

        status, told = forked(disturbed)
        end = {0: "went on" if told else "not reached", 2: "one line", 137: "killed"}.get(status)
        if end is None or (status == 2 and "\n" in told):
            return "other", f"the disturbed run ended with {status}: {told}"
        status, found = forked(resumed)
        if status != 0:
            return end, f"the resumed run ended with {status}: {found}; before: {told}"
        if found["numbers"] != self.expected:
            return end, "other numbers"
        if _has_children():
            return end, "a process is left"
        return end, f"left behind: {found['left'][:3]}" if found["left"] else None

    def _fresh(self) -> Path:
        """An empty folder, which the shim looks at."""
        root = self.base / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        os.environ.update(FULA_CACHE=str(root / "cache"), FAULT_ROOT=str(root))
        return root


def _has_children() -> bool:
    """Whether a process lives that a point started (orphans are given to this one)."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def points_of(log: list[str]) -> list[tuple[int, str]]:
    """Every call with everything that can happen to it."""
    return [(n, kind) for n, call in enumerate(log) for kind in KINDS if call[0] in _APPLY[kind]]


def measure(base: Path, sample: int | None, seed: int, seconds: float, jobs: int) -> dict[str, Any]:
    """Count the calls of a run, then go through the points."""
    runner, began = _prepared(base), time.perf_counter()
    log, expected = runner.counted()
    points = points_of(log)
    chosen = random.Random(seed).sample(points, len(points) if sample is None else sample)

    def share(k: int) -> list[tuple[int, str, str, str | None]]:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)
        own, found = replace(runner, base=base / str(k), expected=expected["numbers"]), []
        for number, kind in chosen[k::jobs]:
            if time.perf_counter() - began > seconds:
                break
            found.append((number, kind, *own.point(number, kind)))
            if found[-1][-1]:
                print(log[number], *found[-1], file=sys.stderr, flush=True)
        return found

    shares = [_ended(*each) for each in [_started(partial(share, k)) for k in range(jobs)]]
    if broken := [told for status, told in shares if status]:
        raise SystemExit(broken[0])
    return _summary(log, points, [each for _, part in shares for each in part], expected) | {
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "jobs": jobs,
    }


_SUBREAPER = 36


def _prepared(base: Path) -> Runner:
    """A runner; all that is imported at first use is there for what is forked."""
    import torch

    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    add_tiny_network()
    _draw_nothing()
    shim = ctypes.CDLL(os.environ["FAULT_SHIM"])
    shim.fault_log.restype = ctypes.c_char_p
    shim.fault_arm.argtypes = [ctypes.c_long, ctypes.c_int]
    make_data(base / "data")
    os.environ["FULA_CACHE"] = str(base / "warm/cache")
    work(base / "warm", base / "data")
    return Runner(shim, base / "counted", base / "data")


def _summary(
    log: list[str], points: list[tuple[int, str]], tried: list[Any], expected: dict[str, Any]
) -> dict[str, Any]:
    outcomes: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    for _, kind, end, _ in tried:
        outcomes[kind][end] += 1
    return {
        "cells": expected["cells"],
        "calls": len(log),
        "calls_by_kind": dict(sorted(Counter(call[0] for call in log).items())),
        "points": len(points),
        "tried": len(tried),
        "outcomes": {kind: dict(sorted(found.items())) for kind, found in outcomes.items()},
        "failed": [
            {"call": log[n], "number": n, "fault": kind, "end": end, "why": why}
            for n, kind, end, why in tried if why
        ],
    }  # fmt: skip


def _below(argv: list[str]) -> int:
    """Build the shim and start again above it."""
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "shim.so"
        source = Path(__file__).with_name("shim.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        below = os.environ | {
            "LD_PRELOAD": str(shim), "FAULT_SHIM": str(shim), "OMP_NUM_THREADS": "1"
        }  # fmt: skip
        return subprocess.run([sys.executable, *argv], env=below, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, help="only so many points, keyed by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--jobs", type=int, default=2, help="points at a time")
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    if "FAULT_SHIM" not in os.environ:
        return _below(sys.argv)
    with tempfile.TemporaryDirectory() as base:
        found = measure(Path(base), asked.sample, asked.seed, asked.seconds, asked.jobs)
    print(json.dumps(found, indent=1))
    if asked.save:
        from fula_fast.bench.harness import record

        command = " ".join(["python tests/whole/faults/harness.py", *sys.argv[1:]])
        record.write(asked.save, {"bench": "faults"} | record.environment("cpu", command) | found)
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
