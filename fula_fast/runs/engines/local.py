"""Workers as processes of this machine: one for each GPU, or a share of the processors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ...errors import FulaError
from ...files.atomic import host_name
from ...progress import Progress
from .launch import Launch, Training, Watch

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
"""How long a worker that is told to end may take."""
MOST_DEATHS = 10
"""Of workers in one epoch of a wave, without a finished cell in between; being asked to end
(`_ASKED`: preempted) is none."""
_ASKED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
_REFUSED = 2
"""A worker's exit code for what concerns the whole run."""


@dataclass
class _Worker:
    number: int
    log: Path
    process: subprocess.Popen

    @classmethod
    def start(cls, number: int, workers: int, device: str, log: Path, *arguments: str) -> _Worker:
        """`fula-fast ARGUMENTS`, one of so many, on its share of the machine."""
        environment, place = _place(number, workers, device)
        command = [sys.executable, "-m", "fula_fast", *arguments]
        command += ["--device", place, "--parent", str(os.getpid())]
        with log.open("a") as output:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
            )
        return cls(number, log, process)

    @property
    def note(self) -> str:
        """Its note's name among the writers."""
        return f"{host_name()}-{self.process.pid}.json"

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def run(launch: Launch, progress: Progress) -> None:
    """Start workers, watch them, and start those anew that were killed.

    Raises `FulaError` for what a worker could not go on with, and for a wave on which workers die.
    """
    watch, deaths = Watch(launch, progress), Counter()
    running: list[_Worker] = []  # at any moment all that must be ended
    try:
        for number in range(launch.resources.workers):
            running.append(_start(launch, number))  # noqa: PERF401  each at once among them
        while running:
            time.sleep(LOOK_SECONDS)
            if watch.look():
                deaths.clear()
            for place in reversed(range(len(running))):
                running[place : place + 1] = _after(running[place], launch, deaths, progress)
    finally:
        _end(running)
        watch.look()


def train(training: Training, progress: Progress) -> None:
    """Train donors, so many at once, each in a process on its share of the machine.

    Raises `FulaError` for the first that cannot be trained.
    """
    where, running = training.resources, list[_Worker]()
    at_once = training.at_once(where.workers)
    free = set(range(at_once))
    with TemporaryDirectory() as scratch, training.commands() as commands:
        left = list(commands.items())
        try:
            while left or running:
                while left and free:
                    (name, arguments), number = left.pop(0), free.pop()
                    progress.donor_started(name)
                    log = Path(scratch) / f"{number}.log"
                    place = number, at_once, where.device, log
                    running.append(_Worker.start(*place, *arguments))
                time.sleep(LOOK_SECONDS)
                for worker in [w for w in running if w.process.poll() is not None]:
                    if worker.process.returncode:
                        raise FulaError(worker.last_words().removeprefix("error: "))
                    running.remove(worker)
                    free.add(worker.number)
        finally:
            _end(running)


def _start(launch: Launch, number: int) -> _Worker:
    where, log = launch.resources, launch.store.logs / f"worker-{number}.log"
    return _Worker.start(number, where.workers, where.device, log, *launch.arguments())


def _place(number: int, workers: int, device: str) -> tuple[Mapping[str, str], str]:
    """A worker's environment and device: a GPU of its own, or its share of the cores."""
    if device == "cpu":
        threads = max((os.cpu_count() or 1) // workers, 1)
        return {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}, device
    if ":" in device:
        return {}, device
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else list(map(str, range(torch.cuda.device_count())))
    return {"CUDA_VISIBLE_DEVICES": names[number % len(names)]}, "cuda"


def _after(worker: _Worker, launch: Launch, deaths: Counter, progress: Progress) -> list[_Worker]:
    """The worker while it runs, another in place of one that was killed, none at its end."""
    code = worker.process.poll()
    if code is None:
        return [worker]
    if code == 0:
        return []
    if code == _REFUSED:
        raise FulaError(f"{worker.last_words().removeprefix('error: ')} (log: {worker.log})")
    wave = launch.store.writers.left_by(worker.note)
    place = wave, launch.store.checkpoints.epochs_of(wave) if wave else None
    deaths[place] += code not in _ASKED
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    if deaths[place] == MOST_DEATHS:
        raise FulaError(
            f"{MOST_DEATHS} workers ended on wave '{wave}' without a result ({reason}: "
            f"{worker.last_words()}); see {worker.log}"
        )
    progress.note(f"worker {worker.number} ended ({reason}); another takes its place")
    return [_start(launch, worker.number)]


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + PATIENCE_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
