"""A run's finished cells, attacked afterwards: the numbers of a sweep that attacks them itself."""

import csv
import shutil

import numpy as np
import pytest
import torch
from pyarrow import parquet

from fula_fast import FulaError, sweep
from fula_fast.cli import commands
from fula_fast.models import build, save_checkpoint
from fula_fast.runs.attack import attack_run
from fula_fast.store import Store

pytestmark = [
    pytest.mark.usefixtures("without_plots"),
    pytest.mark.filterwarnings("ignore:.*gradient of exactly"),  # tiny nets saturate
]

WRONG = {
    "compaction=maybe": "compaction = 'maybe' must be true or false (on or off)",
    "fold=1": "fold = 1 must be true or false",
    "random_start=perhaps": "random_start = 'perhaps' must be true or false",
    "random_start=off=1": "random_start = 'off=1' must be true or false",
    "savings=1": "unknown attack option 'savings'",
    "starts=3": "unknown attack option 'starts'",
    "witness=1": "unknown attack option 'witness'",
    "device=cpu": "unknown attack option 'device'",
    "limit=3": "unknown attack option 'limit'",
    "keep_images=true": "unknown attack option 'keep_images'",
    "savings.fold=off": "unknown attack option 'savings.fold'",
    "nope=1": "unknown attack option 'nope'",
    "seed=abc": "seed = 'abc' must be a whole number >= 0",
    "seed=1.5": "seed = 1.5 must be a whole number >= 0",
    "eps=-1": "eps = -1 must be a finite number >= 0",
    "eps=8/0": "divides by zero",
    "eps=inf": "eps = inf must be a finite number >= 0",
    "steps=0": "steps = 0 must be a whole number >= 1",
    "batch_size=many": "batch_size = 'many' must be a whole number >= 1",
    "norm=l1": "norm = 'l1': must be",
    "mode=fast": "unknown mode 'fast'",
    "precision=8": "unknown precision '8'",
    "eps": "--option 'eps' is not of the form KEY=VALUE",
}
"""What `--option` refuses, and how."""

ROBUST = (
    "robust_attack", "robust_accuracy", "robust_agreement_soft", "robust_images",
    "robust_gradients", "robust_eps", "robust_norm", "front_robust_accuracy",
    "end_robust_accuracy",
)  # fmt: skip


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    """Two narrow networks, a little trained so that there is something to attack."""
    from fula_fast.donors.training import DonorTraining, train_donor
    from fula_fast.pipelines import load_source

    folder, source = tmp_path_factory.mktemp("donors"), load_source("digits", size=8)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4)
        train_donor(model, source, DonorTraining(epochs=2, seed=seed, flip=False, pad=1))
        save_checkpoint(model, folder / f"{name}.safetensors", {})
    return folder


@pytest.fixture(scope="module")
def spec(donors):
    def make(robust: str | None = None, executor: str = "wave", **grid) -> dict:
        usual = {"front": "a", "end": "b", "sites": [[3, 5], [9, 9]], "methods": ["dm", "fula"]}
        usual |= {"alpha": [0.0, 0.5]}
        evaluation = {"robust_images": 40} | ({"robust": robust} if robust else {})
        return {
            "data": {"source": "digits", "size": 8},
            "donors": {n: {"checkpoint": str(donors / f"{n}.safetensors")} for n in "ab"},
            "grid": usual | grid,
            "protocol": {
                "epochs": 1, "batch_size": 256, "dm_samples": 60, "crop_padding": 1, "flip": False,
                "attack": {"steps": 2, "eps": 0.02, "step": 0.01},
            },
            "evaluation": evaluation,
            "engine": {"executor": executor, "precision": "fp32", "device": "cpu"},
        }  # fmt: skip

    return make


@pytest.fixture(scope="module")
def plain(spec, tmp_path_factory):
    """A finished run without robust columns."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    return sweep(spec(), folder, quiet=True)


def by_cell(rows, *names):
    return {
        tuple(row[k] for k in ("front_site", "end_site", "method", "alpha")): tuple(
            row[name] for name in names
        )
        for row in rows
    }


@pytest.mark.parametrize("attack", ["pgd-3", pytest.param("apgd20", marks=pytest.mark.slow)])
def test_the_rows_are_those_of_a_sweep_that_attacks(spec, plain, tmp_path, attack):
    whole = sweep(spec(attack), tmp_path / "whole", quiet=True)
    found = attack_run(plain.folder, attack)
    assert by_cell(found.rows, *ROBUST) == by_cell(whole.rows, *ROBUST)
    values = {row["robust_accuracy"] for row in found.rows}
    assert len(values) > 1 and max(values) > 0  # the attacks succeed here and fail there
    kept = ("cell", "accuracy", "front_hash", "seed")
    assert by_cell(found.rows, *kept) == by_cell(plain.rows, *kept)
    table = parquet.read_table(plain.folder / f"attack-{attack}.parquet").to_pylist()
    assert by_cell(table, *ROBUST) == by_cell(found.rows, *ROBUST)
    with open(found.table, newline="") as file:
        assert [r["cell"] for r in csv.DictReader(file)] == [r["cell"] for r in found.rows]


@pytest.mark.slow
def test_several_workers_attack_a_run(plain, tmp_path, capsys, one_thread):
    """The same rows and table; what is left of those that a worker did not finish, too."""
    alone, many = tmp_path / "alone", tmp_path / "many"
    for folder in (alone, many):
        shutil.copytree(plain.folder, folder, ignore=shutil.ignore_patterns("attack*"))
    found = attack_run(alone, "pgd-3")
    with pytest.raises(SystemExit) as ended:
        commands.app(
            ["attack", str(many), "--attack", "pgd-3", "--workers", "2", "--device", "cpu"]
        )
    assert ended.value.code == 0, capsys.readouterr().err
    tables = [parquet.read_table(f / "attack-pgd-3.parquet").to_pylist() for f in (alone, many)]
    assert tables[0] == tables[1] and len(tables[0]) == len(found.rows)
    assert (many / "attacks/pgd-3/logs/worker-1.log").exists()
    images = ["--out", str(tmp_path / "examples"), "--workers", "2", "--device", "cpu"]
    with pytest.raises(SystemExit):  # all rows are there, and no images yet
        commands.app(["attack", str(many), "--attack", "pgd-3", *images])
    assert {p.stem for p in (tmp_path / "examples").iterdir()} == {r["cell"] for r in found.rows}


@pytest.mark.slow
def test_cells_that_were_trained_alone_are_attacked_too(spec, tmp_path):
    whole = sweep(spec("pgd-3", "solo"), tmp_path / "whole", quiet=True)
    found = attack_run(whole.folder, "pgd-3")
    ours, theirs = (by_cell(r, "robust_accuracy", "robust_agreement_soft") for r in (
        found.rows, whole.rows))  # fmt: skip
    # A wave folds no batch norm: signs of gradients near zero may turn by rounding, and with them
    # some pixels of some images; flags must be equal.
    for cell, values in ours.items():
        assert values[0] == theirs[cell][0], cell
        assert values[1] == pytest.approx(theirs[cell][1], abs=5e-4), cell


@pytest.mark.parametrize(
    "rule", [{"bn": "eval"}, {"stitch_bn": "both", "init": "random"}, {"dm_stats": "stale"}]
)
def test_other_rules_of_batch_norm(spec, tmp_path, rule):
    """Statistics that never moved, those of the stitch itself, and stale ones."""
    asked = spec("pgd-2", alpha=[0.0], sites=[[3, 5]])
    asked["protocol"] |= rule
    whole = sweep(asked, tmp_path / "whole", quiet=True)
    found = attack_run(whole.folder, "pgd-2")
    assert by_cell(found.rows, *ROBUST) == by_cell(whole.rows, *ROBUST)


@pytest.mark.parametrize("executor", ["wave", "solo"])
def test_a_bfloat16_run_is_attacked_in_float32(spec, tmp_path, executor):
    """The closed form, whose stitches do not depend on the precision: all that is said of attacked
    images is what a float32 run says."""
    asked = spec("pgd-2", executor, alpha=[0.0], methods=["dm"])
    asked["protocol"] |= {"dm_stats": "stale"}
    exact = sweep(asked, tmp_path / "exact", quiet=True)
    asked["engine"]["precision"] = "bf16"
    narrow = sweep(asked, tmp_path / "narrow", quiet=True)
    same = attack_run(narrow.folder, "pgd-2", precision="fp32")
    columns = (*ROBUST, "robust_clean_accuracy", "robust_precision")
    expected = by_cell(exact.rows, *columns)
    for cell, values in by_cell(same.rows, *columns).items():
        assert values == pytest.approx(expected[cell], abs=1e-4), cell  # a wave folds no batch norm
    # By itself such a run searches in bfloat16, and again in float32 for what survives.
    again = attack_run(narrow.folder, "pgd-2", name="again")
    clean = ("robust_clean_accuracy", "robust_precision", "robust_accuracy")
    alike = by_cell(narrow.rows, *clean)
    assert by_cell(again.rows, *clean) == alike
    for cell, (of_clean, precision, robust) in alike.items():
        assert precision == "bf16" and robust <= of_clean
        assert of_clean == by_cell(exact.rows, *clean)[cell][0]
    assert {row["precision"] for row in narrow.rows} == {"bf16"}
    assert expected and {v[-1] for v in expected.values()} == {"fp32"}


def test_options_replace_the_cells_own(plain):
    (weak, strong) = (
        attack_run(plain.folder, "pgd-3", name=name, limit=20, eps=eps, step=eps / 2).rows
        for name, eps in (("weak", 0.0), ("strong", 0.5))
    )
    assert all(r["robust_images"] == 20 and r["robust_eps"] == 0.5 for r in strong)
    assert all(
        a["robust_accuracy"] >= b["robust_accuracy"] for a, b in zip(weak, strong, strict=True)
    )
    assert sum(r["robust_accuracy"] for r in strong) < sum(r["robust_accuracy"] for r in weak)


def test_switches_are_on_or_off(capsys, plain):
    """Gradients saved by compaction, whichever way it is spelt."""
    taken = {}
    for text in ("on", "true", "off", "False"):
        code, _, err = command(
            capsys, str(plain.folder), "--attack", "apgd20", "--name", text, "--images", "10",
            "--option", f"compaction={text}", "--option", "steps=3", "--option", "eps=0.5",
            "--device", "cpu",
        )  # fmt: skip
        assert code == 0, err
        table = parquet.read_table(plain.folder / f"attack-{text}.parquet").to_pylist()
        taken[text] = sum(row["robust_gradients"] for row in table)
    assert taken["on"] == taken["true"] < taken["off"] == taken["False"]


def test_an_interrupted_attack_goes_on(plain, monkeypatch):
    written = []
    write = Store.write

    def fail_at_the_second(self, *args):
        if written and len(written) == 1:
            written.append("stopped")
            raise KeyboardInterrupt
        written.append(args)
        write(self, *args)

    monkeypatch.setattr("fula_fast.engine.attacked._IMAGE_ROOM", 4 * 40 * 192)  # a cell at a time
    monkeypatch.setattr(Store, "write", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        attack_run(plain.folder, "pgd-1", name="cut")
    assert len(Store.open(plain.folder / "attacks/cut").done()) == 1
    monkeypatch.setattr(Store, "write", write)
    found = attack_run(plain.folder, "pgd-1", name="cut")
    once = attack_run(plain.folder, "pgd-1", name="once")
    assert len(found.rows) == len(plain.rows)
    assert by_cell(found.rows, *ROBUST) == by_cell(once.rows, *ROBUST)


def test_adversarial_examples_on_request(plain, tmp_path):
    rows = attack_run(plain.folder, "pgd-3", name="kept", limit=12).rows
    again = attack_run(
        plain.folder, "pgd-3", name="kept", limit=12, examples=tmp_path / "images"
    ).rows
    assert by_cell(again, *ROBUST) == by_cell(rows, *ROBUST)
    for row in again:
        with np.load(tmp_path / "images" / f"{row['cell']}.npz") as file:
            assert file["adversarial"].shape == (12, 3, 8, 8)
            assert file["robust"].mean() == row["robust_accuracy"]


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        commands.app(["attack", *arguments], prog_name="fula-fast")
    return (leaving.value.code or 0, *capsys.readouterr())


def test_the_command(capsys, plain, tmp_path):
    code, out, err = command(
        capsys, str(plain.folder), "--attack", "pgd-2", "--name", "cli", "--images", "10",
        "--option", "eps=4/255", "--device", "cpu", "--out", str(tmp_path / "images"),
    )  # fmt: skip
    assert code == 0 and "Traceback" not in err
    assert "8 cells attacked; robust accuracy 0." in out and "attack-cli.csv" in out
    assert len(list((tmp_path / "images").glob("*.npz"))) == 8


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("RUN", "--data", "source=digits"), "whose spec names its data; drop --data"),
        (("RUN", "--attack", "pgd"), "unknown attack 'pgd'; did you mean 'pgd-10'?"),
        (("RUN", "--attack", "pgd-2", "--option", "esp=1"), "unknown attack option 'esp'"),
        (("RUN", "--attack", "stnadard"), "unknown attack 'stnadard'; did you mean 'standard'?"),
        *(
            ((*target, "--attack", "pgd-2", "--option", option), words)
            for target in (("RUN",), ("nothing", "--data", "source=digits"))
            for option, words in WRONG.items()
        ),
        (("RUN", "--attack", "pgd-2", "--option", "eot=3"), "takes no EOT samples"),
        *(
            (("RUN", "--device", "cpu", "--option", option), words)
            for option, words in (
                ("compile=on", "captured on CUDA and not compiled"),
                ("mode=compiled", "captured on CUDA and not compiled"),
                ("mode=captured", "mode = 'captured' needs a CUDA device"),
            )
        ),
        (("OTHER",), "holds no run (spec.json is missing)"),
        (("nothing",), "give its data too, for example --data source=cifar10"),
        (("RUN", "--attack", "pgd-2", "--name", "taken"), 'settings (attack: "pgd-1" ->'),
        (("UNFINISHED", "--attack", "pgd-2"), "has no finished cell to attack"),
        (("nothing", "--data", "source=digits", "--name", "x"), "--name is of a run's table"),
    ],
)
def test_mistakes_are_one_line(capsys, plain, tmp_path, arguments, words):
    if "taken" in arguments:
        attack_run(plain.folder, "pgd-1", name="taken")
    unfinished = Store.open(plain.folder)
    cells = {"id": list(unfinished.cell_ids)}
    Store.create(tmp_path / "unfinished", unfinished.spec, unfinished.plan, cells)
    places = {
        "RUN": plain.folder, "OTHER": plain.folder / "cells", "UNFINISHED": tmp_path / "unfinished"
    }  # fmt: skip
    code, out, err = command(capsys, *(str(places.get(a, a)) for a in arguments))
    *shown, error = err.splitlines()
    assert code == 2 and not out and words in error and "Traceback" not in err
    assert not shown
    assert not (plain.folder / "attacks/pgd-2").exists() or "--name" in arguments


def test_a_run_without_the_statistics_it_moved_is_refused(plain, monkeypatch):
    monkeypatch.setattr(Store, "statistics", lambda self, cell: {})
    with pytest.raises(FulaError, match="running statistics of cell .* are not stored"):
        attack_run(plain.folder, "pgd-1", name="old")


def test_other_donors_are_refused(spec, donors, tmp_path):
    asked = spec(alpha=[0.0], methods=["dm"], sites=[[9, 9]])
    copied = tmp_path / "a.safetensors"
    copied.write_bytes((donors / "a.safetensors").read_bytes())
    asked["donors"]["a"]["checkpoint"] = str(copied)
    run = sweep(asked, tmp_path / "run", quiet=True)
    for kept in (tmp_path / "run/donors").iterdir():  # which a run reads, wherever it lies
        kept.write_bytes((donors / "b.safetensors").read_bytes())
    with pytest.raises(FulaError, match="donor 'a' has content hash"):
        attack_run(run.folder, "pgd-1")
