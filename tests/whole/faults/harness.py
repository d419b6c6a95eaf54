"""A run of forty tiny cells in which the n-th file operation fails, for every n: then a resume.

    python tests/whole/faults/harness.py --sample 200           # a keyed sample
    python tests/whole/faults/harness.py --save faults.json     # every point

The run trains two donors, decodes images into the cache, makes two waves, tables and report, and an
attack. Every point is a process of its own, forked from this one; after its fault a second process
resumes without any. A point holds where table, stitches and attack are those of an undisturbed run,
bit for bit, and nothing is left lying about.
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
from pathlib import Path
from typing import Any

KINDS = ("kill before", "kill after", "ENOSPC", "EIO", "short write", "EACCES")
_APPLY = {
    "kill before": "ocwsrum", "kill after": "cwsrum", "ENOSPC": "cwsrm", "EIO": "ocwsrum",
    "short write": "w", "EACCES": "ocrum",
}  # fmt: skip
"""What can happen to opening (o), making (c), writing (w), flushing (s), renaming (r) and removing
(u) a file, and making a folder (m)."""

_MEASURES = ("accuracy", "agreement_soft", "term_stitch", "loss", "front_hash", "end_hash")
SPEC = {
    "name": "faults",
    "data": {"source": "imagefolder", "size": 8, "options": {"decoder": "pillow"}},
    "donors": {
        n: {"model": "resnet18", "width": 4, "residuals": False, "seed": s, "epochs": 1, "batch_size": 12} for s, n in enumerate("ab")
    },
    "grid": {
        "front": "a", "end": "b", "sites": [[s, s] for s in (2, 4, 6, 8, 9)],
        "methods": ["dm", "hint", "tlm", "fula"], "seeds": [0, 1],
    },
    "protocol": {"epochs": 1, "batch_size": 12, "dm_samples": 12, "crop_padding": 1, "flip": False},
    "engine": {"executor": "wave", "precision": "fp32", "device": "cpu", "mode": "eager"},
}  # fmt: skip


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
    with tempfile.TemporaryFile("w+") as told:
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
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        text = told.read()
        return status, json.loads(text) if text else None


def _judged(error: BaseException) -> tuple[int, str]:
    """2 for what the command line tells in one line, 1 for a traceback."""
    from fula_fast import FulaError

    if isinstance(error, FulaError | OSError):
        return 2, str(error)
    return 1, "".join(traceback.format_exception(error)[-3:])


def point(
    shim: ctypes.CDLL, base: Path, data: Path, number: int, kind: str, expected: str
) -> str | None:
    """Why a point does not hold; None where it does."""
    root = base / "point"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    os.environ.update(FULA_CACHE=str(root / "cache"), FAULT_ROOT=str(root))

    def disturbed() -> None:
        shim.fault_arm(number, KINDS.index(kind) + 1)
        work(root, data)

    status, told = forked(disturbed)
    if status not in (0, 2, 137):
        return f"the disturbed run ended with {status}: {told}"
    if status == 2 and "\n" in told:
        return f"more than one line: {told}"
    status, told = forked(lambda: (shim.fault_arm(-1, 0), work(root, data), outcome(root))[2])
    if status != 0:
        return f"the resumed run ended with {status}: {told}"
    if told["numbers"] != expected:
        return "other numbers"
    return f"left behind: {told['left'][:3]}" if told["left"] else None


def points_of(log: str) -> list[tuple[int, str]]:
    """Every call with everything that can happen to it."""
    return [(n, kind) for n, call in enumerate(log) for kind in KINDS if call in _APPLY[kind]]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, help="only so many points, keyed by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    if "FAULT_SHIM" not in os.environ:
        return _below(sys.argv)
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as base:
        found = measure(Path(base), asked.sample, asked.seed, asked.seconds)
    print(json.dumps(found, indent=1))
    if asked.save:
        asked.save.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["failed"] else 0


def _below(argv: list[str]) -> int:
    """Build the shim and start again above it."""
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "shim.so"
        source = Path(__file__).with_name("shim.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        below = os.environ | {"LD_PRELOAD": str(shim), "FAULT_SHIM": str(shim)}
        return subprocess.run([sys.executable, *argv], env=below, check=False).returncode


def measure(base: Path, sample: int | None, seed: int, seconds: float) -> dict[str, Any]:
    """Count the calls of a run, then go through the points."""
    import torch

    torch.set_num_threads(1)
    shim = ctypes.CDLL(os.environ["FAULT_SHIM"])
    shim.fault_log.restype = ctypes.c_char_p
    shim.fault_arm.argtypes = [ctypes.c_long, ctypes.c_int]
    make_data(base / "data")
    whole = base / "whole"
    whole.mkdir()
    os.environ["FULA_CACHE"] = str(base / "warm/cache")
    work(base / "warm", base / "data")  # all that is imported at first use is there for the forks
    os.environ.update(FULA_CACHE=str(whole / "cache"), FAULT_ROOT=str(whole))

    def counted() -> Any:
        shim.fault_arm(-1, 0)
        work(whole, base / "data")
        log = shim.fault_log().decode()
        return log, outcome(whole)

    status, told = forked(counted)
    if status != 0:
        raise SystemExit(f"the undisturbed run ended with {status}: {told}")
    log, expected = told
    points = points_of(log)
    chosen = points if sample is None else random.Random(seed).sample(points, sample)
    failed, kinds = [], Counter()
    began = time.perf_counter()
    for number, kind in chosen:
        if time.perf_counter() - began > seconds:
            break
        why = point(shim, base, base / "data", number, kind, expected["numbers"])
        kinds[kind] += 1
        if why:
            failed.append({"call": number, "letter": log[number], "fault": kind, "why": why})
            print(failed[-1], file=sys.stderr, flush=True)
    return {
        "cells": expected["cells"],
        "calls": len(log),
        "calls_by_kind": dict(sorted(Counter(log).items())),
        "points": len(points),
        "tried": sum(kinds.values()),
        "tried_by_fault": dict(sorted(kinds.items())),
        "failed": failed,
        "seconds": round(time.perf_counter() - began, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
