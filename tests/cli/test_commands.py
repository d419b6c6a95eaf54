"""The command line: what it answers, how it exits, and what it does not import."""

import os
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from fula_fast.cli import commands
from fula_fast.cli.app import _guarded
from fula_fast.errors import FulaError
from fula_fast.runs.sweep import Finished


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    with pytest.raises(SystemExit) as leaving:
        commands.app(list(arguments), prog_name="fula-fast")
    out, err = capsys.readouterr()
    return leaving.value.code or 0, out, err


HEAVY = ("torch", "numpy", "pydantic")


@pytest.mark.parametrize(
    "code, light",
    [
        ("import fula_fast", HEAVY),
        ("from fula_fast.cli.commands import app; app(['--help'])", HEAVY),
        ("from fula_fast.cli.commands import app; app(['sweep', '--help'])", HEAVY),
        ("from fula_fast.cli.commands import app; app(['sweep', '--no-such-option'])", HEAVY),
        ("from fula_fast.cli.commands import app; app(['no-such-command'])", HEAVY),
        ("from fula_fast.cli.commands import app; app(['sweep'])", ("torch", "numpy")),
        (
            "from fula_fast.cli.commands import app; app(['sweep', 'no-such-spec'])",
            ("torch", "numpy"),
        ),
    ],
)
def test_what_answers_at_once_imports_nothing_heavy(code, light):
    probe = (
        f"import sys, atexit\natexit.register(lambda: print(sorted(set(sys.modules) & set({light}))"
        f", file=sys.stderr))\n{code}"
    )
    answer = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    assert answer.stderr.splitlines()[-1] == "[]"
    assert "Traceback" not in answer.stderr


def test_help_lists_the_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("sweep", "sites", "report", "doctor", "bench"))


def test_version(capsys):
    from fula_fast import __version__

    assert run(capsys, "--version")[:2] == (0, f"fula-fast {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sweep",),
        ("sweep", "--no-such-option"),
        ("no-such-command",),
        ("sites", "resnet18", "--size", "many"),
        ("sweep", "no-such-spec"),
        ("sweep", "quickstart", "--set", "grid.sedes=[1]", "--dry-run"),
        ("sweep", "quickstart", "--device", "tpu", "--dry-run"),
        ("sites", "resnet81"),
        ("sites", "resnet18", "--option", "widht=3"),
        ("bench", "no-such-bench"),
        ("bench", "startup", "--compare", "no-such-file.json"),
        ("report", "no-such-run"),
        ("train", "quickstart", "--donor", "z"),
        ("attack", "no-such-file", "--data", "source=digits"),
        ("attack", "no-such-file", "--data", "sorce=digits"),
        ("attack", "no-such-file"),
    ],
)
def test_bad_input_exits_2_without_a_traceback(capsys, arguments):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and err and "Traceback" not in err


def test_a_users_mistake_is_one_line(capsys):
    code, out, err = run(capsys, "sweep", "quickstart", "--set", "grid.sedes=[1]")
    assert (code, out) == (2, "")
    assert err == "error: [grid] unknown key 'sedes'; did you mean 'seeds'?\n"


def test_dry_run_shows_the_plan_and_writes_nothing(capsys, tmp_path):
    out_folder = tmp_path / "run"
    code, out, err = run(
        capsys, "sweep", "quickstart", "--dry-run", "--out", str(out_folder), "--device", "cpu"
    )
    assert (code, err) == (0, "") and not out_folder.exists()
    assert "45 cells" in out and "0 done" in out and "Waves" in out


def test_dry_run_shows_what_is_done(capsys, tmp_path):
    from fula_fast.store import Store
    from fula_fast.study.plan import plan
    from fula_fast.study.spec import load_spec

    spec = load_spec("quickstart")
    planned = plan(spec)
    store = Store.create(tmp_path / "run", spec.dump(), *planned.stored())
    store.write(planned.waves[0].id, [{"cell": planned.cells[0].id, "status": "ok"}])
    _, out, _ = run(
        capsys,
        "sweep",
        "quickstart",
        "--dry-run",
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    )
    assert "1 done" in out


def test_dry_run_of_a_begun_run_has_its_plan_and_times_by_what_its_waves_took(capsys, tmp_path):
    """A fifth of the work of one of five equal waves took 2 s, so 4 * 10 + 8 s are left."""
    from fula_fast.store import Store
    from fula_fast.study.plan import plan
    from fula_fast.study.spec import load_spec

    spec = load_spec("quickstart", [("grid.methods", ["hint"]), ("grid.seeds", [0, 1, 2, 3, 4])])
    planned = plan(spec, workers=5)
    cells = [len(wave.cells) for wave in planned.waves]
    assert len(set(cells)) == 1 and len(cells) == 5
    store = Store.create(tmp_path / "run", spec.dump(), *planned.stored())
    done = planned.waves[0].cells[: cells[0] // 5 or 1]
    rows = [{"cell": c.id, "status": "ok", "train_seconds": 10 / cells[0]} for c in done]
    store.write(planned.waves[0].id, rows)
    asked = ["sweep", "quickstart", "--set", "grid.methods=['hint']", "--dry-run"]
    asked += ["--set", "grid.seeds=[0,1,2,3,4]", "--out", str(tmp_path / "run"), "--device", "cpu"]
    _, out, _ = run(capsys, *asked)
    left = round(50 - 10 / cells[0] * len(rows))
    assert f"time: about 0:{left} for" in out and "by what finished waves took" in out
    _, out, _ = run(capsys, *asked, "--workers", "2")
    assert "schedule: 5 waves on 2 workers" in out and "(by what finished waves took)" in out


def test_dry_run_beside_a_plan_without_a_spec(capsys, tmp_path):
    """A run that was killed while it began: a folder with a spec is a run, any other is not."""
    (tmp_path / "plan.json").write_text("{}")
    plan = ("sweep", "quickstart", "--dry-run", "--out", str(tmp_path), "--device", "cpu")
    code, out, err = run(capsys, *plan)
    assert (code, err) == (0, "") and "0 done" in out


def test_a_damaged_file_is_one_plain_line(capsys, tmp_path):
    from fula_fast.store import Store
    from fula_fast.study.plan import plan
    from fula_fast.study.spec import load_spec

    planned = plan(load_spec("quickstart"))
    store = Store.create(tmp_path, load_spec("quickstart").dump(), *planned.stored())
    store.write(planned.waves[0].id, [{"cell": planned.cells[0].id, "status": "ok"}])
    (shard,) = (tmp_path / "cells").rglob("*.json")
    shard.write_bytes(shard.read_bytes()[:40])
    asked = ("sweep", "quickstart", "--dry-run", "--out", str(tmp_path), "--device", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, err = run(capsys, *asked)
    assert code == 0 and "0 done" in out and err.count("\n") == 1
    assert (
        err.startswith(f"warning: shard of finished cells '{shard}' is damaged: ")
        and ".py" not in err
    )


def test_dry_run_refuses_dm_between_unlike_sites(capsys, tmp_path):
    spec = tmp_path / "unlike.toml"
    spec.write_text(
        '[data]\nsource = "cifar10"\n[donors.a]\nmodel = "resnet18"\n[donors.b]\n'
        'model = "vit_tiny"\n[grid]\nfront = "a"\nend = "b"\nmethods = ["hint", "dm"]\n'
    )
    code, out, err = run(capsys, "sweep", str(spec), "--dry-run", "--device", "cpu")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "method 'dm' needs sites of one form" in err and "leave dm out" in err
    plain = ("--set", 'grid.methods=["hint"]')
    assert run(capsys, "sweep", str(spec), "--dry-run", "--device", "cpu", *plain)[0] == 0


def test_flags_reach_the_engine_table(capsys):
    code, out, _ = run(
        capsys, "sweep", "quickstart", "--dry-run", "--device", "cpu", "--precision", "fp64",
        "--memory", "2GiB", "--engine-mode", "eager", "--executor", "solo",
    )  # fmt: skip
    assert code == 0 and "cpu, fp64, eager" in out and "45 waves" in out and "2.0 GiB" in out


def test_sites_prints_every_site(capsys):
    code, out, _ = run(capsys, "sites", "resnet18", "--option", "width=8", "--size", "16")
    assert code == 0
    assert all(name in out for name in ("stem", "layer1.0", "layer4.1", "64×2×2"))


SMALL = ("--set", "donors.a.width=2", "--set", "donors.a.epochs=0", "--set", "data.size=8")


def test_train_and_attack_a_donor(capsys, tmp_path):
    folder = tmp_path / "donors"
    weak = ("--set", "donors.a.min_accuracy=0.0")
    train = ("train", "quickstart", "--donor", "a", "--device", "cpu", "--out", str(folder))
    code, out, _ = run(capsys, *train, *SMALL, *weak)
    (checkpoint,) = folder.glob("*.safetensors")
    assert code == 0 and str(checkpoint) in out and "test accuracy 0." in out
    code, out, _ = run(
        capsys, "attack", str(checkpoint), "--data", "source=digits", "--data", "size=8",
        "--attack", "pgd-1", "--images", "8", "--option", "eps=1/255", "--device", "cpu",
        "--out", str(tmp_path / "examples.npz"),
    )  # fmt: skip
    assert code == 0 and out.startswith("pgd-1 on 8 images: clean accuracy")
    assert (tmp_path / "examples.npz").exists()


def test_train_fits_heads(capsys, tmp_path):
    spec, folder = tmp_path / "heads.toml", tmp_path / "donors"
    donor = 'model = "resnet18"\nwidth = 2\nuntrained = true\nhead = '
    spec.write_text(
        '[data]\nsource = "digits"\nsize = 8\n[grid]\nfront = "a"\nend = "b"\n'
        f'[donors.a]\n{donor}"none"\n[donors.b]\n{donor}"knn=5"\n'
    )
    code, out, _ = run(capsys, "train", str(spec), "--device", "cpu", "--out", str(folder))
    none, votes = out.splitlines()
    assert code == 0 and none.startswith("a: ") and none.endswith(", no answers")
    assert len(list(folder.glob("*.safetensors"))) == 2 and "test accuracy 0." in votes
    assert none.split(",")[0][3:] != votes.split(",")[0][3:]


def test_a_donor_below_its_accuracy_is_bad_input(capsys, tmp_path):
    code, _, err = run(
        capsys, "train", "quickstart", "--donor", "a", "--device", "cpu",
        "--out", str(tmp_path), *SMALL,
    )  # fmt: skip
    assert code == 2 and "min_accuracy = 0.95" in err


class Summary:
    """What a finished run hands back, as far as the command line reads it."""

    def __init__(self, failed):
        self.run = Finished(Path(), 9, failed, 1.0)

    def __str__(self):
        return "the end"


@pytest.fixture
def sweep_as(monkeypatch):
    """Replace the sweep itself by a function."""

    def install(function):
        import types

        module = types.ModuleType("fula_fast.report.after_sweep")
        module.sweep_with_report = function
        monkeypatch.setitem(sys.modules, "fula_fast.report.after_sweep", module)

    return install


@pytest.mark.parametrize("failed, code", [(0, 0), (3, 1)])
def test_exit_codes_of_a_sweep(capsys, sweep_as, failed, code):
    seen = {}

    def swept(spec, out, **options):
        seen.update(options, name=spec.name, out=out)
        return Summary(failed)

    sweep_as(swept)
    found = run(capsys, "sweep", "quickstart", "--resume", "--fail-fast")
    assert found[:2] == (code, "the end\n")
    assert seen["out"] == Path("runs/quickstart")
    assert seen["resume"] and seen["fail_fast"] and not seen["profile"]


def test_ctrl_c_exits_130_and_says_how_to_resume(capsys, sweep_as):
    def swept(*args, **options):
        raise KeyboardInterrupt

    sweep_as(swept)
    code, _, err = run(capsys, "sweep", "quickstart")
    assert code == 130
    assert err.startswith("interrupted; ") and "the same command with --resume" in err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_failure_behind_a_stop_is_that_stop(capsys, sweep_as, number, code):
    """A library has dropped the interrupt, and told of something else."""

    def swept(*args, **options):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        raise FulaError("a checkpoint is damaged")

    sweep_as(swept)
    before = signal.getsignal(number)
    found, _, err = run(capsys, "sweep", "quickstart")
    assert found == code and "--resume" in err and "damaged" not in err
    assert signal.getsignal(number) == before

    def refused(*args, **options):
        raise FulaError("the disk is full")

    sweep_as(refused)  # a later command knows nothing of that stop
    assert run(capsys, "sweep", "quickstart")[0] == 2


def test_errors_of_the_sweep_are_one_line(capsys, sweep_as):
    def swept(*args, **options):
        raise FulaError("the disk is full;\nmake room")

    sweep_as(swept)
    code, _, err = run(capsys, "sweep", "quickstart")
    assert (code, err) == (2, "error: the disk is full; make room\n")


@pytest.mark.slow
def test_bench_runs_from_any_folder(tmp_path):
    own = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    answer = subprocess.run(
        [sys.executable, "-m", "fula_fast", "bench", "startup", "--save", "found.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=own,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "plan" in answer.stdout and (tmp_path / "found.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libx.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        MemoryError(),
    ],
)
def test_a_machine_without_memory_is_told_in_one_line(error, capsys):
    def work():
        raise error

    assert _guarded(work, "") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: the machine refused (") and told.count("\n") == 1


def test_a_missing_library_is_no_lack_of_memory():
    def work():
        raise ImportError("No module named 'x'")

    with pytest.raises(ImportError, match="No module"):
        _guarded(work, "")
