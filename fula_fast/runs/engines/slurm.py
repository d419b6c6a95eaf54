"""Workers as a Slurm job array, by submitit.

A job that is preempted or runs out of time is requeued, and goes on from its wave's checkpoint.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ...errors import FulaError
from ...progress import Progress
from .launch import Launch, Watch

LOOK_SECONDS = 5.0
REQUEUES = 1000
"""Of a job that ran out of time, which is no failure."""


class SlurmJob:
    """One worker: what Slurm's job calls, and calls again after a requeue."""

    def __init__(self, arguments: list[str], folder: str) -> None:
        self.arguments, self.folder = arguments, folder

    def __call__(self) -> int:
        """The exit code of `fula-fast work`."""
        import subprocess
        import sys

        os.chdir(self.folder)
        return subprocess.run(
            [sys.executable, "-m", "fula_fast", *self.arguments, "--parent", str(os.getpid())],
            check=False,
        ).returncode

    def checkpoint(self, *args: Any) -> Any:
        """What submitit submits when the job is preempted or out of time: the same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def run(launch: Launch, progress: Progress) -> None:
    """Submit the workers; with `wait`, tell of what they finish until they have ended."""
    executor = _executor(launch)
    job = SlurmJob(launch.elsewhere(), str(Path.cwd()))
    with executor.batch():
        jobs = [executor.submit(job) for _ in range(launch.resources.workers)]
    names = ", ".join(job.job_id for job in jobs)
    progress.note(f"submitted {len(jobs)} Slurm jobs: {names}; fula-fast status tells of them")
    watch = Watch(launch, progress)
    while launch.manner.wait and not all(job.done() for job in jobs):
        watch.look()
        time.sleep(LOOK_SECONDS)
    watch.look()


def _executor(launch: Launch) -> Any:
    try:
        import submitit
    except ImportError:
        raise FulaError(
            "engine 'slurm' needs the package submitit: pip install 'fula-fast[slurm]'"
        ) from None
    folder = launch.store.logs / "slurm"
    executor = submitit.AutoExecutor(
        folder=folder, cluster=os.environ.get("FULA_SUBMITIT"), slurm_max_num_timeout=REQUEUES
    )
    executor.update_parameters(**parameters(launch))
    return executor


def parameters(launch: Launch) -> dict[str, Any]:
    """submitit's, for a launch's workers; those of processors alone ask for no GPU."""
    spec = launch.engine.slurm
    found: dict[str, Any] = {
        "name": f"fula-{launch.store.folder.name}",
        "timeout_min": max(round(spec.hours * 60), 1),
        "cpus_per_task": spec.cpus,
        "slurm_mem": spec.memory,
        "slurm_additional_parameters": {k.replace("-", "_"): v for k, v in spec.sbatch.items()},
    }
    if spec.gpus and launch.resources.device != "cpu":
        of_type = f"{spec.gpu_type}:" if spec.gpu_type else ""
        found["slurm_additional_parameters"]["gres"] = f"gpu:{of_type}{spec.gpus}"
    found |= {"slurm_partition": spec.partition} if spec.partition else {}
    found |= {"slurm_account": spec.account} if spec.account else {}
    return found
