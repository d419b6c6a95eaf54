"""From the start of a process to the end of a wave's first step: what a sweep waits for.

    python -m fula_fast.bench.suites.first_step --width 16  (JSON: n, p20, p50, p80 of each mode)

`cold`: a compiled mode with empty caches on disk, once. `warm`: with what that run left, as any
later run of the same shapes finds it. Target: 15 s warm for ResNet-18. Imports, both donors and the
wave count; data sets and donors' training do not. Every start is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fula_fast.bench.harness.record import (
    RESULTS,
    device_label,
    environment,
    parser_of,
    quantiles,
    seconds_of,
    write,
)
from fula_fast.bench.harness.workload import (
    OurWave,
    Setting,
    add_options,
    as_in_a_sweep,
    command_of,
    grid_cells,
    setting_of,
)

_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def modes(device: str) -> tuple[str, ...]:
    """The modes worth starting on a device."""
    return ("eager", "compiled") if device == "cpu" else ("eager", "compiled", "captured")


def once(setting: Setting) -> dict[str, float]:
    """Take the first step here: seconds that it took and that the next one takes; when it ended."""
    with as_in_a_sweep(setting):
        step = OurWave(setting, grid_cells(setting.lanes)).stepping(False)
        (first,) = seconds_of(step, 1, setting.device, warmup=0)
        ended = time.time()
        (second,) = seconds_of(step, 1, setting.device, warmup=0)
    return {"first": first, "second": second, "ended": ended}


def start(setting: Setting, mode: str, caches: Path) -> dict[str, float]:
    """A process of its own that takes two steps: `total` is from its start to its first step."""
    command = command_of("first_step", setting).split()[1:] + ["--mode", mode, "--once"]
    places = {name: str(caches / folder) for name, folder in _CACHES.items()}
    began = time.time()  # a clock that both processes read
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | places, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return {"first": found["first"], "second": found["second"], "total": found["ended"] - began}


def row(setting: Setting, mode: str, rounds: int) -> dict[str, Any]:
    """A mode's cold start and its warm ones."""
    with tempfile.TemporaryDirectory(prefix="fula-first-step-") as folder:
        cold = start(setting, mode, Path(folder))
        warm = [start(setting, mode, Path(folder)) for _ in range(rounds)]
    return {"mode": mode, "cold": cold, "warm": _spread(warm)}


def _spread(starts: list[dict[str, float]]) -> Mapping[str, Any]:
    return {name: quantiles([s[name] for s in starts]) for name in starts[0]}


def main(arguments: list[str]) -> None:
    """Start every mode and write the JSON; with --once, take the steps and print them."""
    parser = parser_of(__doc__)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="warm starts of each mode")
    parser.add_argument("--once", action="store_true", help="take two steps here and print times")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    setting = setting_of(options)
    if options.once:
        print(json.dumps(once(setting)))
        return
    command = f"{command_of('first_step', setting)} --rounds {options.rounds}"
    found = environment(setting.device, command) | {"bench": "first-step", "setting": vars(setting)}
    rows = [row(setting, mode, options.rounds) for mode in modes(setting.device)]
    path = options.out / f"first-step-{device_label(setting.device)}.json"
    write(path, found | {"rows": rows})
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
