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
from .launch import Launch, Training, Watch, device_of

LOOK_SECONDS = 5.0
REQUEUES = 1000
"""Of a job that ran out of time, which is no failure."""


class SlurmJob:
    """One worker: what Slurm's job calls, and calls again after a requeue."""

    def __init__(self, arguments: list[str], folder: str) -> None:
        self.arguments, self.folder = arguments, folder

    def __call__(self) -> int:
        """The exit code of `fula-fast`."""
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
    name = f"fula-{launch.store.folder.name}"
    executor = _executor(name, launch.store.logs / "slurm", launch)
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


def train(training: Training, progress: Progress) -> None:
    """Train donors, each a job, and wait for them; who stops waiting cancels them. Raises
    `FulaError` for those that cannot be trained."""
    name, where = f"fula-{training.spec.name}", training.folder / "logs" / "slurm"
    executor, jobs = _executor(name, where, training), {}
    executor.update_parameters(slurm_array_parallelism=training.at_once(len(training.names)))
    with training.commands() as commands:
        with executor.batch():
            for donor, arguments in commands.items():
                given = [*arguments, *device_of(training.engine)]
                jobs[donor] = executor.submit(SlurmJob(given, str(Path.cwd())))
        try:
            for donor, job in jobs.items():
                progress.donor_started(donor)
                progress.note(f"donor {donor} is trained by Slurm job {job.job_id}")
            while not all(job.done() for job in jobs.values()):
                time.sleep(LOOK_SECONDS)
        finally:
            for job in jobs.values():
                if not job.done():
                    job.cancel()
    for donor, job in jobs.items():
        if job.exception() or job.result():
            raise FulaError(f"donor '{donor}' is not trained: {_last_words(job)}")


def _last_words(job: Any) -> str:
    """The last line that a job wrote, and where the others are."""
    lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    words = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    return f"{words} (log: {job.paths.stderr})"


def _executor(name: str, folder: Path, work: Launch | Training) -> Any:
    try:
        import submitit
    except ImportError:
        raise FulaError(
            "engine 'slurm' needs the package submitit: pip install 'fula-fast[slurm]'"
        ) from None
    executor = submitit.AutoExecutor(
        folder=folder, cluster=os.environ.get("FULA_SUBMITIT"), slurm_max_num_timeout=REQUEUES
    )
    executor.update_parameters(name=name, **parameters(work))
    return executor


def parameters(work: Launch | Training) -> dict[str, Any]:
    """submitit's, for a job; those of processors alone ask for no GPU."""
    spec = work.engine.slurm
    found: dict[str, Any] = {
        "timeout_min": max(round(spec.hours * 60), 1),
        "cpus_per_task": spec.cpus,
        "slurm_mem": spec.memory,
        "slurm_additional_parameters": {k.replace("-", "_"): v for k, v in spec.sbatch.items()},
    }
    if spec.gpus and work.resources.device != "cpu":
        of_type = f"{spec.gpu_type}:" if spec.gpu_type else ""
        found["slurm_additional_parameters"]["gres"] = f"gpu:{of_type}{spec.gpus}"
    found |= {"slurm_partition": spec.partition} if spec.partition else {}
    found |= {"slurm_account": spec.account} if spec.account else {}
    return found
