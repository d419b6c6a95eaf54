"""A grid of 216 cells that is disturbed in the ways that laboratories know, on every engine, ends
with the table of one that is not, bit for bit, and leaves no process behind.

Run by hand: `pytest -m long tests/runs/test_disturbed.py`; twenty minutes on two free cores (on busy
ones Slurm's jobs hardly get to work in their three minutes). The real Slurm needs Debian's
`slurm-wlm` and root, the full disk root too; each is skipped where it cannot run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fula_fast import load
from fula_fast.models import build, save_checkpoint

from .test_alone import runs
from .test_workers import _notes, measured

tomli_w = pytest.importorskip("tomli_w")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.long

SPEC = {
    "data": {"source": "digits", "size": 8},
    "grid": {
        "front": "a", "end": "b", "sites": "same", "methods": ["hint", "slm", "tlm", "fula"],
        "seeds": list(range(6)),
    },
    "protocol": {"epochs": 16, "batch_size": 256, "crop_padding": 1},
    "evaluation": {"batch_size": 200},
}  # fmt: skip
CELLS = 216
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""As each of several workers on two cores has: the order of sums depends on their number."""


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict:
    folder, found = tmp_path_factory.mktemp("donors"), {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=2).eval()
        save_checkpoint(model, folder / f"{name}.safetensors")
        found[name] = {"checkpoint": str(folder / f"{name}.safetensors")}
    return found


class Run:
    """A sweep from its spec file, by the command line, in a process of its own."""

    def __init__(self, root: Path, donors: dict, out: Path | None = None, **engine) -> None:
        self.spec, self.folder = root / "spec.toml", out or root / "run"
        engine = {"device": "cpu", "precision": "fp32", "mode": "eager"} | engine
        self.spec.write_text(tomli_w.dumps(SPEC | {"donors": donors, "engine": engine}))

    def start(self, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "fula_fast", "sweep", str(self.spec)]
        command += ["--out", str(self.folder), "--resume", *options]
        return subprocess.Popen(
            command, env=os.environ | ALONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def to_its_end(self, *options: str) -> str:
        process = self.start(*options)
        said = process.communicate()[0]
        assert process.returncode == 0, said
        return said

    @property
    def rows(self) -> list[dict]:
        return measured(load(self.folder))

    def working(self) -> list[int]:
        return [note["pid"] for note in _notes(self.folder) if note["wave"]]

    def progress(self) -> set:
        """Changes with every finished epoch and cell."""
        found = set()
        for part in ("checkpoints/*.safetensors", "cells/*/*.json"):
            for path in self.folder.glob(part):
                try:
                    found.add((path.name, path.stat().st_mtime_ns))
                except FileNotFoundError:
                    continue
        return found

    def moved_on(self, seconds: float = 120) -> None:
        """Wait for an epoch or a cell."""
        before, end = self.progress(), time.monotonic() + seconds
        while self.progress() == before and time.monotonic() < end:
            time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(donors, tmp_path_factory) -> list[dict]:
    run = Run(tmp_path_factory.mktemp("undisturbed"), donors, **SMALL)
    run.to_its_end()
    assert len(run.rows) == CELLS
    return run.rows


SMALL = {"workers": 2, "memory": "120MiB"}
"""Waves so small that there are many; the same partition as of the undisturbed run, as sums of other
lanes' sizes round otherwise (1e-7 of a loss after 16 epochs)."""


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own; `grow` makes room."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(place)], check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)


def test_local_workers_killed_twenty_times_drivers_twice_and_a_full_disk(
    donors, undisturbed, tmp_path, small_disk
):
    run = Run(tmp_path, donors, out=small_disk / "run", **SMALL)
    draw, killed, pids, said = random.Random(1), 0, set(), ""
    driver, drivers_killed, full = run.start(), 0, False
    while killed < 20 or drivers_killed < 2 or not full:
        if driver.poll() is not None:
            said = driver.communicate()[0]
            assert driver.returncode == 2 and "No space left" in said, said
            full = True
            grow(small_disk)
            driver = run.start()
        working = run.working()
        pids.update(working)
        if len(working) == 2 and killed < 20:
            time.sleep(draw.uniform(0, 0.3))
            _kill(draw.choice(working), draw.choice([signal.SIGKILL, signal.SIGTERM]))
            killed += 1
            run.moved_on()
        if killed in (7, 14) and drivers_killed < killed // 7:
            _kill(driver.pid, signal.SIGKILL)
            driver.communicate()
            drivers_killed += 1
            _wait(lambda: not any(map(runs, pids)))  # nobody outlives who started it
            driver = run.start()
        if killed == 20 and not full and driver.poll() is None:
            time.sleep(0.2)
    driver.communicate()
    assert driver.returncode == 0 and full
    assert run.rows == undisturbed
    assert not any(map(runs, pids))


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(until: Callable[[], object], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_ray_cluster_that_loses_a_node(donors, undisturbed, tmp_path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        run = Run(tmp_path, donors, kind="ray", ray={"address": cluster.address}, **SMALL)
        driver = run.start()
        _wait(lambda: len(run.working()) == 2)
        pids = set(run.working())
        run.moved_on()
        cluster.remove_node(node)
        run.moved_on()
        cluster.add_node(num_cpus=1)
        _wait(lambda: set(run.working()) - pids or driver.poll() is not None)
        said = driver.communicate()[0]
        assert driver.returncode == 0, said
    finally:
        cluster.shutdown()
    assert run.rows == undisturbed
    assert not any(map(runs, pids))


SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
KillWait=5
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN RealMemory=4000
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")


@pytest.fixture
def slurm(monkeypatch) -> Iterator[None]:
    """A cluster of one node. Its sockets' paths must be short."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid():
        pytest.skip(f"needs root and Debian's slurm-wlm ({', '.join(missing)} not found)")
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    for part in ("state", "spool"):
        (root / part).mkdir(parents=True)
    (root / "slurm.conf").write_text(SLURM.format(root=root, host=socket.gethostname()))
    (root / "munge.key").write_bytes(os.urandom(1024))
    (root / "munge.key").chmod(0o400)
    monkeypatch.setenv("SLURM_CONF", str(root / "slurm.conf"))
    names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
    names |= {"log-file": "munged.log", "seed-file": "munged.seed"}
    places = [f"--{option}={root / name}" for option, name in names.items()]
    subprocess.run(["munged", "--force", *places], check=True)
    subprocess.run(["slurmctld"], check=True)
    subprocess.run(["slurmd"], check=True)
    _wait(lambda: "idle" in _said("sinfo", "-h", "-o", "%T"))
    yield
    subprocess.run(["scancel", "--partition=low"], check=False)
    _wait(lambda: not _said("squeue", "-h"))  # what is left of jobs does not end without it
    for name in ("slurmd", "slurmctld", "munged"):
        _kill(int((root / f"{name}.pid").read_text()), signal.SIGTERM)
    shutil.rmtree(root, ignore_errors=True)  # the three write there until they end


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_slurm_jobs_that_are_preempted_and_run_out_of_time(donors, undisturbed, tmp_path, slurm):
    """Twice another job takes the node; and each job has three minutes, of which the last ninety
    seconds are for its end."""
    pytest.importorskip("submitit")
    jobs = {"hours": 3 / 60, "cpus": 1, "memory": "1GB"}
    run = Run(tmp_path, donors, kind="slurm", slurm=jobs, **SMALL)
    assert "left to workers that go on by themselves" in run.to_its_end()
    pids: set[int] = set()
    for _ in range(2):
        _wait(lambda: len(run.working()) == 2, 600)
        pids.update(run.working())
        run.moved_on()
        subprocess.run(
            ["sbatch", "-p", "high", "-c", "2", "-o", os.devnull, "--wrap", "sleep 5"], check=True
        )
        _wait(lambda: not any(map(runs, pids)))
    _wait(lambda: not _said("squeue", "-h"), 3000)
    logs = "".join(path.read_text() for path in (run.folder / "logs/slurm").glob("*.err"))
    assert logs.count("DUE TO PREEMPTION") >= 2 and "this job is timed-out" in logs
    shown = json.loads(
        _said(sys.executable, "-m", "fula_fast", "status", str(run.folder), "--json")
    )
    assert (shown["state"], shown["done"], shown["failed"]) == ("finished", CELLS, 0)
    assert run.rows == undisturbed and (run.folder / "report.html").exists()
    assert not any(map(runs, pids))
