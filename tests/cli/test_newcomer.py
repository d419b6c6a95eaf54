"""What a newcomer meets first: the README's spec, a dry run, refusals that leave nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import fula_fast
from fula_fast import FulaError
from fula_fast.attacks import robust_evaluate
from fula_fast.cli import commands
from fula_fast.models import build
from fula_fast.study.spec import load_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = """
[data]
source = "digits"
size = 8
train_images = 200
test_images = 50
[donors.a]
model = "resnet18"
width = 4
untrained = true
[donors.b]
model = "resnet18"
width = 4
seed = 1
untrained = true
[grid]
front = "a"
end = "b"
sites = [[3, 3]]
methods = ["hint"]
[protocol]
batch_size = 50
epochs = 1
"""


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        commands.app(list(arguments), prog_name="fula-fast")
    out, err = capsys.readouterr()
    return leaving.value.code or 0, out, err


def test_the_readmes_spec_can_be_planned_as_it_stands(capsys, tmp_path, monkeypatch):
    (block,) = re.findall(r"```toml\n(name = .*?)```", README, re.S)
    assert set(tomllib.loads(block)["donors"]) == {"a", "b"}
    (tmp_path / "depth.toml").write_text(block)
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "sweep", "depth.toml", "--dry-run")
    assert code == 0 and "data: 'cifar10' is not here; looked for" in out


@pytest.mark.parametrize(
    "word, says",
    [
        ("agreement_top1", "same answer as the end donor"),
        ("agreement_right_wrong", "both right or both wrong: two models at 10 % agree at 0.82 by"),
        ("dm_stats", 'epochs of passes .*`dm_stats = "stale"` makes none'),
    ],
)
def test_the_guide_says_what_names_do_not(word, says):
    """Of what misled: an agreement by chance, and a closed form that takes thirty epochs."""
    page = (ROOT / "fula_fast/guide/pages/reading.md").read_text(encoding="utf-8")
    assert word in page and re.search(says, " ".join(page.split()))
    assert "fula_fast/guide/pages/reading.md" in README
    assert load_spec(tomllib.loads(TINY)).base_protocol.dm_stats == "refreshed"


def test_a_dry_run_says_whether_data_is_here_and_how_long_it_takes(capsys, tmp_path):
    (tmp_path / "s.toml").write_text(TINY)
    code, out, _ = run(capsys, "sweep", str(tmp_path / "s.toml"), "--dry-run")
    assert code == 0 and "data: 'digits' is here" in out
    assert re.search(r"time: about \d+:\d\d for the training of stitches", out)
    assert list(tmp_path.iterdir()) == [tmp_path / "s.toml"]


@pytest.mark.parametrize("path", ["gone.pt", "/gone/a.safetensors", "~/gone.pt"])
def test_a_dry_run_says_which_checkpoint_is_not_here(capsys, tmp_path, path):
    given = TINY.replace("untrained = true", f"checkpoint = '{path}'", 1)
    (tmp_path / "s.toml").write_text(given)
    code, out, _ = run(capsys, "sweep", str(tmp_path / "s.toml"), "--dry-run")
    shown = path.replace("~", str(Path.home()))
    assert code == 0 and f"donor a: checkpoint '{shown}' is not here" in out.replace("\n", "")
    assert "donor b" not in out


@pytest.mark.parametrize(
    "change",
    [
        ("untrained = true", "checkpoint = 'gone.safetensors'"),
        ("untrained = true", "untrained = true\nmin_accuracy = 0.99"),
        ("test_images = 50", "test_images = 50\n[donors.a.data]\nchannels = 1"),
    ],
)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_refused_run_leaves_no_folder(capsys, tmp_path, change, depth):
    (tmp_path / "s.toml").write_text(TINY.replace(*change, 1))
    out = tmp_path.joinpath(*"xyz"[:depth])
    code, _, err = run(capsys, "sweep", str(tmp_path / "s.toml"), "--out", str(out))
    assert code == 2 and err
    assert list(tmp_path.iterdir()) == [tmp_path / "s.toml"]


@pytest.mark.parametrize("size", [201, 5000, 10**9])
def test_a_batch_larger_than_the_data_is_named_before_memory(size):
    spec = tomllib.loads(TINY)
    spec["protocol"]["batch_size"] = size
    with pytest.raises(FulaError, match=rf"batch_size = {size} is more than the 200 training"):
        fula_fast.sweep(spec, "unused", quiet=True)


NETWORK = build("resnet18", num_classes=10, input_shape=(3, 8, 8), width=4)
X, Y = torch.rand(2, 3, 8, 8), np.zeros(2, dtype=np.int64)


@pytest.mark.parametrize("eps", [8, 8.0, 2])
@pytest.mark.parametrize("way", ["spec", "python", "line"])
def test_eps_in_levels_is_refused(capsys, eps, way):
    words = rf"eps = {eps:g}: pixels lie in \[0, 1\].* give {eps:g}/255"
    if way == "line":
        given = ("--data", "source=digits", "--option", f"eps={eps}")
        code, _, err = run(capsys, "attack", "a.safetensors", *given)
        assert code == 2 and re.search(words, err)
        return
    with pytest.raises(FulaError, match=words):
        if way == "python":
            robust_evaluate(NETWORK, X, Y, "pgd-1", eps=eps)
        else:
            load_spec(tomllib.loads(TINY) | {"protocol": {"attack": {"eps": eps}}})


@pytest.mark.parametrize("name, ours", [("epsilon", "eps"), ("step_size", "step")])
def test_names_of_the_field_are_understood(name, ours):
    (found,), (expected,) = (
        robust_evaluate(NETWORK, X, Y, "pgd-2", **{given: 0.3}) for given in (name, ours)
    )
    assert found.settings == expected.settings and found.settings[ours] == 0.3
    by_name, by_ours = (
        load_spec(tomllib.loads(TINY) | {"protocol": {"attack": {n: 0.1}}}) for n in (name, ours)
    )
    assert by_name.base_protocol == by_ours.base_protocol
    assert getattr(by_name.base_protocol.attack, ours) == 0.1
    written = load_spec(tomllib.loads(TINY) | {"protocol": {"attack": {name: "51/510"}}})
    assert written.base_protocol == by_name.base_protocol
    with pytest.raises(FulaError, match=f"'{name}' and '{ours}' are the same option"):
        robust_evaluate(NETWORK, X, Y, "pgd-1", **{name: 0.1, ours: 0.1})
    with pytest.raises(FulaError, match=f"'{name}' and '{ours}' are the same option"):
        load_spec(tomllib.loads(TINY) | {"protocol": {"attack": {name: 0.1, ours: 0.1}}})


def test_weights_of_another_program_are_attacked_by_the_models_name(capsys, tmp_path):
    torch.save({"state_dict": {f"module.{n}": v for n, v in NETWORK.state().items()}, "epoch": 1},
               tmp_path / "a.pt")  # fmt: skip
    given = ["attack", str(tmp_path / "a.pt"), "--data", "source=digits", "--data", "size=8"]
    given += ["--attack", "pgd-1", "--images", "8"]
    code, _, err = run(capsys, *given)
    assert code == 2 and "--model resnet18" in err
    code, out, _ = run(capsys, *given, "--model", "resnet18", "--model-option", "width=4")
    assert code == 0 and "pgd-1 on 8 images" in out


def test_results_and_stitches_show_themselves_in_a_notebook(tmp_path, without_plots):
    results = fula_fast.sweep(tomllib.loads(TINY), tmp_path / "run", quiet=True)
    html = results._repr_html_()
    (row,) = results.rows
    assert html.count("<tr>") == 2 and f"{row['accuracy']:.4g}" in html and "hint" in html
    found = fula_fast.stitch(
        NETWORK, NETWORK, 3, 3, "digits", method="dm", dm_samples=60, quiet=True
    )
    assert f"<td>{found.accuracy:.4g}</td>" in found._repr_html_()


def test_stitch_reports_its_progress(capsys):
    given = {"epochs": 1, "batch_size": 200, "dm_samples": 60}
    fula_fast.stitch(NETWORK, NETWORK, 3, 3, "digits", **given)
    assert "1/1 cells" in capsys.readouterr().err
    fula_fast.stitch(NETWORK, NETWORK, 3, 3, "digits", quiet=True, **given)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments", [["sites", "resnet18"], ["attack", "--help"], ["sweep", "quickstart", "--dry-run"]]
)
def test_a_terminal_that_lacks_letters_shows_others(arguments):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    command = [sys.executable, "-m", "fula_fast", *arguments]
    found = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert found.returncode == 0 and b"Traceback" not in found.stderr
    assert found.stdout.isascii() and found.stderr.isascii() and len(found.stdout) > 200


def test_a_name_that_the_systems_encoding_lacks_is_one_line(capsys, tmp_path, monkeypatch):
    """`PYTHONUTF8=0` in the C locale: no folder can have the name of the spec."""
    (tmp_path / "tiny.toml").write_text(f'name = "né"\n{TINY}', "utf-8")

    def refuse(*_args, **_options):
        raise UnicodeEncodeError("ascii", "runs/né", 6, 7, "ordinal not in range(128)")

    monkeypatch.setattr("fula_fast.report.after_sweep.sweep_with_report", refuse)
    code, _, err = run(capsys, "sweep", str(tmp_path / "tiny.toml"))
    assert code == 2 and "'runs/né' cannot be written in the system's encoding 'ascii'" in err
    assert "set PYTHONUTF8=1" in err and err.count("\n") == 1


@pytest.mark.parametrize("option", ["num_classes=5", "hook=pre_relu", "name=x"])
def test_what_is_no_option_of_a_model_is_said(capsys, option):
    for command in (["sites", "resnet18"], ["sites", "torchvision:resnet18"]):
        code, _, err = run(capsys, *command, "--option", option)
        assert code == 2 and "is no option of a model" in err
