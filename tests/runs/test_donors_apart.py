"""Donors that have to be trained are trained side by side, each once, to the very same weights."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fula_fast import FulaError, sweep
from fula_fast.cli import commands
from fula_fast.progress import Progress
from fula_fast.runs.engines import Training, local
from fula_fast.study.resources import Resources
from fula_fast.study.spec import load_spec

tomli_w = pytest.importorskip("tomli_w")
pytestmark = pytest.mark.usefixtures("without_plots")


class Told(Progress):
    def __init__(self) -> None:
        self.started = []

    def donor_started(self, name: str) -> None:
        self.started.append(name)


def spec_of(**changes) -> dict:
    table = {
        "data": {"source": "digits", "size": 8},
        "donors": {
            n: {"model": "resnet18", "width": 2, "epochs": 1, "seed": s}
            for s, n in enumerate("abc")
        },
        "grid": {"pairs": [["a", "b"], ["b", "c"]], "sites": [[9, 9]], "methods": ["hint"]},
        "protocol": {"epochs": 1, "batch_size": 256, "crop_padding": 1},
        "engine": {"device": "cpu", "precision": "fp32"},
    }
    return table | changes


def training_of(table: dict, names: list[str], folder: Path) -> Training:
    spec = load_spec(table)
    return Training(spec, names, folder, Resources("cpu", "fp32", 1 << 30, workers=2))


def stored(folder: Path) -> dict[str, dict[str, bytes]]:
    """Bytes of all weights, by file."""
    return {
        path.name: {n: t.numpy().tobytes() for n, t in load_file(path).items()}
        for path in folder.glob("*.safetensors")
    }


@pytest.mark.slow
def test_side_by_side_gives_the_weights_of_one_after_another(tmp_path, one_thread):
    alone = sweep(spec_of(), tmp_path / "alone", donors=tmp_path / "one", quiet=True)
    many = spec_of(engine={"device": "cpu", "precision": "fp32", "workers": 3})
    found = sweep(many, tmp_path / "many", donors=tmp_path / "three", quiet=True)
    for name in ("front_hash", "end_hash"):
        assert [row[name] for row in found.rows] == [row[name] for row in alone.rows]
    files = [sorted(p.name for p in (tmp_path / n).glob("*.safetensors")) for n in ("one", "three")]
    assert files[0] == files[1] and len(files[0]) == 3


def test_each_that_is_not_there_is_asked_for_once(tmp_path, monkeypatch):
    asked = []

    def train(training, progress) -> None:
        asked.extend(training.names)
        raise FulaError("enough")

    monkeypatch.setattr(local, "train", train)
    table = spec_of(engine={"device": "cpu", "precision": "fp32", "workers": 2})
    table["donors"]["b"] |= {"untrained": True}
    with pytest.raises(FulaError, match="enough"):
        sweep(table, tmp_path / "run", donors=tmp_path / "donors", quiet=True)
    assert asked == ["a", "c"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_does_so_too(tmp_path, capsys, monkeypatch):
    """A process for each, and the lines of one process."""
    started = []
    start = local._Worker.start
    monkeypatch.setattr(local._Worker, "start", lambda *a: started.append(a[-1]) or start(*a))
    (tmp_path / "spec.toml").write_text(tomli_w.dumps(spec_of()))
    with pytest.raises(SystemExit) as ended:
        commands.app(
            [
                "train",
                str(tmp_path / "spec.toml"),
                "--out",
                str(tmp_path / "donors"),
                "--workers",
                "2",
            ]
        )
    assert ended.value.code == 0 and sorted(started) == ["a", "b", "c"]
    assert capsys.readouterr().out.count("test accuracy") == 3
    assert len(list((tmp_path / "donors").glob("*.safetensors"))) == 3


@pytest.mark.slow
def test_what_a_donor_is_refused_for_is_told(tmp_path):
    """In its own words, and no process is left behind."""
    table = spec_of()
    table["donors"]["b"]["min_accuracy"] = 0.999
    told = Told()
    with pytest.raises(FulaError, match=r"\[donors.b\] .* below min_accuracy = 0.999"):
        local.train(training_of(table, ["b"], tmp_path / "donors"), told)
    assert told.started == ["b"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_cluster_trains_each_as_a_task(tmp_path, capsys, monkeypatch, kind, package):
    """To the weights of this process; by submitit's executor for one machine."""
    pytest.importorskip(package)
    monkeypatch.setenv("FULA_SUBMITIT", "local")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "spec.toml").write_text(tomli_w.dumps(spec_of()))
    here, there = tmp_path / "here", tmp_path / "there"
    given = ["train", str(tmp_path / "spec.toml"), "--donor", "a", "--donor", "b", "--out"]
    lines = []
    for asked in ([str(here)], [str(there), "--engine", kind]):
        with pytest.raises(SystemExit) as ended:
            commands.app([*given, *asked])
        assert ended.value.code == 0
        lines.append(capsys.readouterr().out.replace(str(there), str(here)))
    assert lines[0] == lines[1] and lines[0].count("test accuracy") == 2
    assert len(stored(here)) == 2 and stored(there) == stored(here)
    assert not list(there.glob("*.toml"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_cluster_tells_what_a_donor_is_refused_for(tmp_path, monkeypatch, kind, package):
    pytest.importorskip(package)
    monkeypatch.setenv("FULA_SUBMITIT", "local")
    table = spec_of(engine={"device": "cpu", "precision": "fp32", "kind": kind})
    table["donors"]["b"]["min_accuracy"] = 0.999
    engine = import_module(f"fula_fast.runs.engines.{kind}")
    with pytest.raises(FulaError, match=r"\[donors.b\] .* below min_accuracy = 0.999"):
        engine.train(training_of(table, ["b"], tmp_path / "donors"), Progress())
