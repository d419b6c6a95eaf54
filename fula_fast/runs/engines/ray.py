"""Workers as Ray tasks: on a cluster by its address, or on one of its own on this machine.

Ray starts a task again when its worker or its node dies; it goes on from its wave's checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import FulaError
from ...progress import Progress
from .launch import Launch, Training, Watch, device_of

LOOK_SECONDS = 1.0
_REFUSED = 2


def run(launch: Launch, progress: Progress) -> None:
    """Start the tasks and tell of what they finish until they have ended.

    Raises `FulaError` where the cluster refuses them.
    """
    with _connected(launch) as (ray, task):
        folder, watch = str(Path.cwd()), Watch(launch, progress)
        waiting = [task.remote(launch.elsewhere(), folder) for _ in range(launch.resources.workers)]
        while waiting:
            ended, waiting = ray.wait(waiting, timeout=LOOK_SECONDS)
            watch.look()
            for code, words in ray.get(ended):
                if code == _REFUSED:
                    raise FulaError(words)
                if code:
                    progress.note(f"a worker ended with exit code {code}: {words}")
        watch.look()


def train(training: Training, progress: Progress) -> None:
    """Train donors, each a task; raises `FulaError` for the first that cannot be trained."""
    with _connected(training) as (ray, task), training.commands() as commands:
        left, waiting, folder = list(commands.items()), [], str(Path.cwd())
        while left or waiting:
            while left and len(waiting) < training.at_once(len(commands)):
                name, arguments = left.pop(0)
                progress.donor_started(name)
                waiting.append(task.remote([*arguments, *device_of(training.engine)], folder))
            ended, waiting = ray.wait(waiting, timeout=LOOK_SECONDS)
            for code, words in ray.get(ended):
                if code:
                    raise FulaError(words)


@contextmanager
def _connected(work: Launch | Training) -> Iterator[tuple[Any, Any]]:
    """Ray, and its task that runs `fula-fast`."""
    ray, spec = _ray(), work.engine.ray
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=spec.address, log_to_driver=False, include_dashboard=False)
    try:
        gpus = 0 if work.resources.device == "cpu" else spec.gpus
        yield ray, ray.remote(_worker).options(num_cpus=spec.cpus, num_gpus=gpus, max_retries=-1)
    finally:
        if ours:
            ray.shutdown()


def _worker(arguments: list[str], folder: str) -> tuple[int, str]:
    """`fula-fast` in a process of its own: its exit code and last line. A killed one is run
    again, as Ray does with the task itself."""
    while True:
        done = subprocess.run(
            [sys.executable, "-m", "fula_fast", *arguments, "--parent", str(os.getpid())],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode >= 0:
            break
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, (lines[-1] if lines else "").removeprefix("error: ")


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise FulaError(
            "engine 'ray' needs the package ray: pip install 'fula-fast[ray]'"
        ) from None
    return ray
