"""Several processes on one run: the same table, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fula_fast import FulaError, load, stops, sweep
from fula_fast.cli import commands
from fula_fast.models import build, save_checkpoint
from fula_fast.pipelines import Batch, evaluation_batches, load_source
from fula_fast.progress import Progress
from fula_fast.runs.engines import local, slurm
from fula_fast.runs.engines.launch import Launch, Manner, now
from fula_fast.runs.waves import longest_first
from fula_fast.store import Store
from fula_fast.store.activity import status_of
from fula_fast.study.resources import Resources
from fula_fast.study.spec import EngineSpec, SlurmSpec

from .test_alone import runs

tomli_w = pytest.importorskip("tomli_w")
pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("donors")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=2).eval()
        save_checkpoint(model, folder / f"{name}.safetensors")
    return folder


def spec_of(donors: Path, **engine) -> dict:
    """36 cells."""
    return {
        "data": {"source": "digits", "size": 8},
        "donors": {n: {"checkpoint": str(donors / f"{n}.safetensors")} for n in "ab"},
        "grid": {"front": "a", "end": "b", "sites": "same", "methods": ["hint", "slm"],
                 "seeds": [0, 1]},
        "protocol": {"epochs": 2, "batch_size": 256, "crop_padding": 1},
        "evaluation": {"batch_size": 200},
        "engine": {"device": "cpu", "precision": "fp32", **engine},
    }  # fmt: skip


@pytest.fixture(scope="module")
def alone(donors, tmp_path_factory) -> list[dict]:
    """The rows of one process."""
    return measured(sweep(spec_of(donors), tmp_path_factory.mktemp("alone") / "run", quiet=True))


def measured(results) -> list[dict]:
    assert not results.failed
    return [{k: v for k, v in row.items() if k != "train_seconds"} for row in results.rows]


@pytest.mark.slow
def test_two_workers_give_the_table_of_one(donors, alone, tmp_path):
    found = sweep(spec_of(donors, workers=2), tmp_path / "run", quiet=True)
    assert measured(found) == alone
    store = Store.open(tmp_path / "run")
    logs = {"worker-0.log", "worker-1.log", *(f"wave-{name}.log" for name in store.waves())}
    assert {p.name for p in (tmp_path / "run" / "logs").iterdir()} == logs
    assert status_of(Store.open(tmp_path / "run")).state == "finished"


@pytest.mark.slow
def test_workers_that_are_killed_change_nothing(donors, alone, tmp_path):
    """Small waves, of which up to six lose their worker: as many as the run lasts long enough for."""
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=_kill, args=(tmp_path / "run", killed, ended), daemon=True)
    killer.start()
    spec = spec_of(donors, workers=2) | {"protocol": {"epochs": 4, "batch_size": 64}}
    undisturbed = sweep(spec_of(donors) | {"protocol": spec["protocol"]}, tmp_path / "alone")
    found = sweep(spec, tmp_path / "run", quiet=True)
    ended.set()
    assert len(killed) >= 2
    assert measured(found) == measured(undisturbed)
    assert not any(map(runs, killed))


def _kill(folder: Path, killed: list[int], ended: threading.Event) -> None:
    draw = random.Random(0)
    while not ended.wait(0.3) and len(killed) < 6:
        working = [n for n in _notes(folder) if n["wave"] and n["pid"] not in killed]
        if working:
            pid = draw.choice(working)["pid"]
            os.kill(pid, draw.choice([signal.SIGKILL, signal.SIGTERM]))
            killed.append(pid)
            ended.wait(1)


def _notes(folder: Path) -> list[dict]:
    """As another program would read them."""
    found = []
    for path in (folder / "writers").glob("[!.]*.json"):
        try:
            found.append(json.loads(path.read_text())["content"])
        except (FileNotFoundError, KeyError, ValueError):
            continue
    return found


@pytest.mark.slow
def test_no_worker_outlives_who_started_it(donors, tmp_path):
    """Killed, it cannot end them itself."""
    spec = spec_of(donors, workers=2) | {"protocol": {"epochs": 500, "batch_size": 64}}
    code = f"import fula_fast; fula_fast.sweep({spec!r}, {str(tmp_path / 'run')!r}, quiet=True)"
    starter = subprocess.Popen([sys.executable, "-c", code])
    pids = _until(lambda: [n["pid"] for n in _notes(tmp_path / "run") if n["wave"]], 2)
    starter.kill()
    starter.wait()
    assert _until(lambda: [p for p in pids if not runs(p)], 2) == pids
    assert status_of(Store.open(tmp_path / "run")).state == "stopped"


@pytest.mark.slow
def test_cancel_ends_every_worker_and_its_starter(donors, tmp_path, capsys):
    spec = spec_of(donors, workers=2) | {"protocol": {"epochs": 500, "batch_size": 64}}
    code = f"import fula_fast; fula_fast.sweep({spec!r}, {str(tmp_path / 'run')!r}, quiet=True)"
    starter = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    pids = _until(lambda: [n["pid"] for n in _notes(tmp_path / "run") if n["wave"]], 2)
    with pytest.raises(SystemExit) as ended:
        commands.app(["cancel", str(tmp_path / "run")])
    assert ended.value.code == 0 and "stopped" in capsys.readouterr().out
    assert "the run was cancelled at" in starter.communicate(timeout=60)[1]
    assert not any(map(runs, pids))


@pytest.mark.parametrize("heard", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_interrupts_who_works_on_it(store, heard):
    """As Ctrl-C does (a process in the background may ignore that), but it says why; whoever starts
    later is not meant."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == heard else signal.SIG_IGN)
    began = time.monotonic()
    with pytest.raises(FulaError, match="cancelled at .* UTC"), store.writers.present(now()):
        store.writers.cancel(now())
        time.sleep(60)
    for number, handler in before.items():
        signal.signal(number, handler)
    assert time.monotonic() - began < 30
    assert store.writers.alive() == []
    with store.writers.present(now()):
        store.writers.check_wanted(now())
    with pytest.raises(FulaError, match="cancelled"):
        store.writers.check_wanted("2020-01-01T00:00:00+00:00")


def test_a_dropped_interrupt_is_no_end_of_a_cancelled_run(store):
    """As where a library has called the handler from C, and has cleared what it raised."""

    def dropped(number, frame):
        heard.append(number)

    heard, made = list[int](), list[Batch]()
    before = signal.signal(signal.SIGINT, dropped)
    try:
        with pytest.raises(FulaError, match="cancelled at .* UTC"), store.writers.present(now()):
            store.writers.cancel(now())
            _until(lambda: heard, 1)
            made.extend(evaluation_batches(load_source("digits", size=8).test, 100))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not made
    stops.check()


def test_what_fails_behind_a_dropped_interrupt_is_the_cancelled_run(store):
    with pytest.raises(FulaError, match="cancelled at .* UTC"), store.writers.present("2020"):
        store.writers.cancel(now())
        stops.remember(KeyboardInterrupt())
        raise ValueError("could not determine the shape")


def test_only_failed_cells_are_done_once_more(store):
    store.write("w", [{"cell": "c0", "status": "failed", "error": "boom"}])
    assert Manner(retry_failed=True).todo(store) == {"c0"}
    assert Manner().todo(store) == {"c0", "c1", "c2"}
    launch = Launch(
        store, Resources("cpu", "fp32", 1 << 30), EngineSpec(), Manner(retry_failed=True)
    )
    assert "--retry-failed" in launch.arguments()


def test_there_is_nothing_to_retry_without_a_run(donors, tmp_path):
    with pytest.raises(FulaError, match="holds no run whose failed"):
        sweep(spec_of(donors), tmp_path / "run", retry_failed=True)


def _until(ask, count: int, seconds: float = 120):
    end = time.monotonic() + seconds
    while len(found := ask()) < count:
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


def launch_of(store, **engine) -> Launch:
    return Launch(store, Resources("cpu", "fp32", 1 << 30, workers=2), EngineSpec(**engine))


@pytest.fixture
def store(tmp_path) -> Store:
    waves = {"id": ["w", "v"], "cells": [2, 1], "flops": [4, 1]}
    waves |= {"front": ["a", "a"], "end": ["b", "b"], "rule": [0, 0]}
    cells = {"id": ["c0", "c1", "c2"]}
    return Store.create(tmp_path / "run", {"name": "t"}, {"waves": waves}, cells)


def worker(store, code: int | None, words: str = ""):
    log = store.logs / "worker-0.log"
    log.write_text(words)
    process = SimpleNamespace(poll=lambda: code, pid=1)
    return local._Worker(0, log, process)


def test_a_worker_that_was_killed_is_replaced_a_few_times(store, monkeypatch):
    monkeypatch.setattr(local, "_start", lambda launch, number: f"another {number}")
    deaths, launch, progress = Counter(), launch_of(store), Progress()
    for _ in range(local.MOST_DEATHS - 1):
        dead = worker(store, -9, "Killed")
        assert local._after(dead, launch, deaths, progress) == ["another 0"]
    asked = worker(store, 143, "stopped by SIGTERM")
    assert local._after(asked, launch, deaths, progress) == ["another 0"]
    with pytest.raises(FulaError, match=r"10 workers ended .*signal 9: Killed"):
        local._after(worker(store, -9, "Killed"), launch, deaths, progress)


def test_what_a_worker_refuses_ends_the_run_and_one_that_is_done_does_not(store):
    launch = launch_of(store)
    refused = worker(store, 2, "a line\nerror: donor 'a' is gone\n")
    with pytest.raises(FulaError, match="^donor 'a' is gone"):
        local._after(refused, launch, Counter(), Progress())
    assert local._after(worker(store, 0), launch, Counter(), Progress()) == []
    running = worker(store, None)
    assert local._after(running, launch, Counter(), Progress()) == [running]


def test_a_wave_that_another_has_claimed_is_let_go(store, monkeypatch):
    """Who was first keeps it, whatever its name; an old note gives it free."""
    first = store.writers
    second = type(first)(first.folder)
    monkeypatch.setattr("fula_fast.store.writers.os.getpid", lambda: 1)
    assert first.claim("w")
    monkeypatch.undo()
    assert not second.claim("w") and second.claim("v")
    assert [n["wave"] for n in second.others()] == ["w"]
    (path,) = (p for p in first.folder.iterdir() if p.name.endswith("-1.json"))
    os.utime(path, (0, 0))
    assert second.claim("w")


def test_what_failed_after_the_start_is_settled_and_what_failed_before_is_not(store):
    failed = {"cell": "c0", "status": "failed", "error": "boom"}
    store.write("w", [failed])
    launch = launch_of(store)
    assert store.settled(launch.since) == set()
    store.write("w", [failed | {"cell": "c1"}, {"cell": "c2", "status": "ok"}])
    assert store.settled(launch.since) == {"c1", "c2"}


def test_status_tells_all_kinds_of_cells_apart(store, capsys):
    """Failed is not interrupted, and a dead worker runs nothing."""
    assert status_of(store).state == "stopped" and status_of(store).waiting == 3
    store.checkpoints.save("w", {"x": torch.zeros(1)}, {"epoch": 3})
    assert status_of(store).interrupted == 2
    with store.writers.present(now()):  # no start is noted: nothing is known
        assert status_of(store).state == "running" and status_of(store).seconds_left is None
    store.add_launch({})
    store.write("v", [{"cell": "c2", "status": "failed", "error": "boom"}])
    with store.writers.present(now()):
        store.writers.claim("w")
        found = status_of(store)
        assert (found.state, found.running, found.interrupted, found.failed) == ("running", 2, 0, 1)
        assert (found.workers[0].epochs, found.workers[0].cells) == (3, 2)
        assert found.seconds_left > 0
    store.write("w", [{"cell": c, "status": "ok"} for c in ("c0", "c1")])
    with pytest.raises(SystemExit) as ended:
        commands.app(["status", str(store.folder), "--json"])
    assert ended.value.code == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["state"] == "finished" and shown["reasons"] == {"boom": 1}
    assert shown["done"] == 2 and shown["failed"] == 1


def test_waves_of_earlier_starts_tell_how_long_the_rest_takes(tmp_path):
    """One of two kinds took 6 s where FLOPs say the same of both; nothing is finished since the
    latest start: 2 waves of 6 s and one of 3 s are left to one worker."""
    waves = {"id": ["u", "v", "w", "x"], "cells": [1, 1, 1, 1], "flops": [1, 1, 1, 1]}
    waves |= {"front": list("aaaa"), "end": list("bbbb"), "rule": [0, 1, 0, 0]}
    cells = {"id": ["c0", "c1", "c2", "c3"]}
    store = Store.create(tmp_path / "run", {"name": "t"}, {"waves": waves}, cells)
    store.write("u", [{"cell": "c0", "status": "ok", "train_seconds": 6}])
    store.write("v", [{"cell": "c1", "status": "failed", "error": "boom"}])
    assert store.wave_seconds() == [6, 6, 6, 6]  # of any kind
    store.write("v", [{"cell": "c1", "status": "ok", "train_seconds": 3}])
    assert store.wave_seconds() == [6, 3, 6, 6]
    planned = [SimpleNamespace(id=name) for name in "vuwx"]
    assert [wave.id for wave in longest_first(planned, store)] == ["u", "w", "x", "v"]
    store.add_launch({})
    with store.writers.present(now()):
        assert status_of(store).seconds_left == 12


def test_all_workers_end_where_one_refuses(store, monkeypatch):
    """The one that has just taken a dead one's place, too."""
    ended = []

    class Process:
        def __init__(self, pid: int, code: int | None) -> None:
            self.pid, self.code = pid, code

        def poll(self):
            return self.code

        def terminate(self) -> None:
            ended.append(self.pid)

        def wait(self, seconds: float) -> None:
            pass

    started = iter([Process(1, 2), Process(2, -9), Process(3, None)])

    def start(launch, number):
        log = store.logs / f"worker-{number}.log"
        log.write_text("error: no\n")
        return local._Worker(number, log, next(started))

    monkeypatch.setattr(local, "_start", start)
    monkeypatch.setattr(local, "LOOK_SECONDS", 0)
    with pytest.raises(FulaError, match="^no "):
        local.run(launch_of(store), Progress())
    assert 3 in ended


def test_a_machine_of_many_gpus_keeps_a_network_of_this_process(tmp_path, donors, monkeypatch):
    """Nobody asked for workers, who could not have it."""
    monkeypatch.setattr("fula_fast.study.resources._devices", lambda *_: 4)
    spec = spec_of(donors)
    spec["grid"] |= {"sites": [[9, 9]], "methods": ["hint"], "seeds": [0]}
    network = build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=2).eval()
    models = {"a": network}
    spec["donors"]["a"] = {}
    assert not sweep(spec, tmp_path / "run", models=models, quiet=True).failed


@pytest.mark.slow
def test_jobs_go_on_by_themselves_and_the_last_writes_the_report(donors, tmp_path, monkeypatch):
    """For a GPU that this machine does not have; its jobs find none either, and take the CPU."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("FULA_SUBMITIT", "local")
    spec = spec_of(donors, kind="slurm", workers=1, device="cuda", memory="1GiB")
    path, run = tmp_path / "s.toml", tmp_path / "run"
    path.write_text(tomli_w.dumps(spec))
    given = [sys.executable, "-m", "fula_fast", "sweep", str(path), "--out", str(run)]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "36 of 36 cells are left to workers" in done.stdout
    assert Store.open(run).plan["device"] == "cuda"
    _until(lambda: list(run.glob("report.html")), 1)
    assert not Store.open(run).missing() and (run / "results.csv").exists()


@pytest.mark.slow
def test_a_run_is_joined_from_any_folder(donors, tmp_path, monkeypatch):
    """Its spec's paths are those of the folder in which it was started."""
    monkeypatch.chdir(donors)
    spec = spec_of(donors)
    spec["donors"] = {n: {"checkpoint": f"{n}.safetensors"} for n in "ab"}
    first = sweep(spec, tmp_path / "run", quiet=True)
    for shard in (tmp_path / "run" / "cells").glob("*/*.json"):
        shard.unlink()
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "fula_fast", "work", "run", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert measured(load(tmp_path / "run")) == measured(first)


def test_workers_take_no_network_of_this_process(tmp_path, donors):
    import fula_fast

    spec = spec_of(donors, workers=2)
    with pytest.raises(FulaError, match="cannot be given to workers; save it"):
        fula_fast.sweep(
            {**spec, "donors": {"a": {}, "b": spec["donors"]["b"]}}, tmp_path / "run",
            models={"a": build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=2)},
        )  # fmt: skip


def test_parameters_of_a_slurm_job(store):
    spec = SlurmSpec(
        partition="gpu", account="lab", gpu_type="h100", gpus=2, hours=1.5, cpus=8,
        sbatch={"exclude": "n7", "mail-type": "FAIL"},
    )  # fmt: skip
    launch = Launch(store, Resources("cuda", "bf16", 1 << 30), EngineSpec(slurm=spec))
    assert slurm.parameters(launch) == {
        "timeout_min": 90, "cpus_per_task": 8, "slurm_mem": "32GB",
        "slurm_partition": "gpu", "slurm_account": "lab",
        "slurm_additional_parameters": {
            "exclude": "n7", "mail_type": "FAIL", "gres": "gpu:h100:2"
        },
    }  # fmt: skip
    launch = Launch(store, Resources("cpu", "fp32", 1 << 30), EngineSpec(slurm=spec))
    assert "gres" not in slurm.parameters(launch)["slurm_additional_parameters"]


@pytest.mark.slow
def test_jobs_of_submitit_give_the_same_table(donors, alone, tmp_path, monkeypatch):
    """By its executor for one machine, which runs the same jobs in processes."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("FULA_SUBMITIT", "local")
    spec = spec_of(donors, kind="slurm", workers=2)
    assert measured(sweep(spec, tmp_path / "run", quiet=True)) == alone


@pytest.mark.slow
def test_tasks_of_ray_give_the_same_table(donors, alone, tmp_path):
    pytest.importorskip("ray")
    spec = spec_of(donors, kind="ray", workers=2)
    assert measured(sweep(spec, tmp_path / "run", quiet=True)) == alone


@pytest.mark.parametrize("kind, package", [("slurm", "submitit"), ("ray", "ray")])
def test_an_engine_whose_package_is_missing_says_how_to_get_it(store, monkeypatch, kind, package):
    from fula_fast.runs.engines import engine_of

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FulaError, match=rf"needs the package {package}: pip install .*\[{kind}\]"):
        engine_of(kind)(launch_of(store, kind=kind), Progress())
