"""Whole experiments at smoke scale: rows, claims, page, resuming, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.parquet import read_table

from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.progress import Progress
from fula_fast.reproduce import resolve
from fula_fast.reproduce.experiment_page import _roles
from fula_fast.reproduce.recipe import recipe_names
from fula_fast.reproduce.runner import Ledger, run

NOWHERE = Path("no-such-folder")
QUICK = ["grid.sites=[9]", "grid.subset=[5,'all']", "data.train_images=160"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of these tests' own, so that nothing depends on earlier runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FULA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def fig9(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("fig9")
    return run(resolve("fig9", "smoke", NOWHERE, QUICK), out), out


@pytest.mark.slow
def test_an_experiment_leaves_rows_claims_plot_and_page(fig9):
    outcome, out = fig9
    assert (outcome.failed, outcome.report) == (0, out / "fig9" / "report.html")
    stored = json.loads((out / "fig9" / "claims.json").read_text())
    assert [c["outcome"] for c in stored] == [v.outcome for v in outcome.verdicts]
    assert {v.outcome for v in outcome.verdicts} <= {"holds", "does not hold", "not testable"}
    assert sum(v.outcome != "not testable" for v in outcome.verdicts) >= 5
    assert (out / "fig9" / "plots" / "fig9.svg").exists()
    assert (out / "fig9" / "fig9" / "report.html").exists()  # the sweep's own report


@pytest.mark.slow
def test_the_page_sets_the_papers_words_beside_our_numbers(fig9):
    outcome, _ = fig9
    page = outcome.report.read_text()
    for verdict in outcome.verdicts:
        assert verdict.says in page and verdict.shown in page
    assert "handwritten digits (stands in for CIFAR-10)" in page
    assert "no outcome means anything" in page
    assert 'href="fig9/report.html"' in page


@pytest.mark.slow
def test_several_workers_run_an_experiments_sweep(fig9, tmp_path):
    found = run(resolve("fig9", "smoke", NOWHERE, QUICK), tmp_path, engine={"workers": 2})
    assert (tmp_path / "fig9" / "fig9" / "logs" / "worker-1.log").exists()
    assert [v.shown for v in found.verdicts] == [v.shown for v in fig9[0].verdicts]


@pytest.mark.slow
def test_an_appendix_figure_reads_the_shared_sweep_and_trains_nothing(fig9, monkeypatch):
    first, out = fig9
    monkeypatch.setattr(
        "fula_fast.runs.workbench.Workbench.__init__",
        lambda *a, **k: pytest.fail("nothing to compute"),
    )
    again = run(resolve("fig26", "smoke", NOWHERE, QUICK), out)
    assert again.report == out / "fig26" / "report.html"
    assert [v.number for v in again.verdicts] == [v.number for v in first.verdicts]
    assert "Its sweeps are those of" in again.report.read_text()


@pytest.mark.slow
def test_a_folder_with_other_settings_is_refused(fig9):
    with pytest.raises(FulaError, match="another spec"):
        run(resolve("fig9", "smoke", NOWHERE, [*QUICK, "protocol.lr=0.5"]), fig9[1])


def test_missing_data_is_named_before_anything_is_done(tmp_path):
    with pytest.raises(FulaError, match="needs data that is not there: cifar10: no cifar10"):
        run(resolve("fig9", "small", tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_noise_goes_into_a_receiver_without_any_sender(tmp_path, cache):
    quick = ["options.sites=[6]", "options.radii=[0.1]", "options.train=640", "options.epochs=2"]
    outcome = run(resolve("mislead-noise", "smoke", NOWHERE, quick), tmp_path)
    kept = json.loads((tmp_path / "mislead-noise/driver/digit-6-0.1-0.json").read_text())
    (row,) = kept["content"]["content"]
    assert (row["front"], row["end"], row["end_site"], row["status"]) == ("noise", "digit", 6, "ok")
    assert row["accuracy"] > 0.5  # chance is 0.1: the clusters are found
    assert outcome.verdicts[0].number == pytest.approx(row["accuracy"])


@pytest.mark.slow
def test_the_losses_of_foundation_models(tmp_path, cache):
    """Five ways into a supervised end and one of SimCLR's, each with a number for every claim."""
    pytest.importorskip("kornia")
    outcome = run(resolve("foundation", "smoke", NOWHERE), tmp_path)
    assert outcome.failed == 0 and len(outcome.verdicts) == 7
    assert all(v.outcome != "not testable" and v.shown for v in outcome.verdicts)
    rows = read_table(tmp_path / "foundation" / "results.parquet").to_pylist()
    pairs = {(r["front"], r["end"]) for r in rows}
    methods = {r["method"] for r in rows}
    assert methods == {"dm", "hint", "tlm", "last", "last-then-task"} and len(pairs) == 3
    assert len(rows) == 3 * 5 * 2 and all(r["end_accuracy"] is not None for r in rows)
    assert (tmp_path / "foundation" / "plots" / "foundation.svg").exists()


def test_contact_sheets_and_their_counts(tmp_path, cache):
    outcome = run(resolve("fig12", "smoke", NOWHERE), tmp_path)
    assert [v.outcome for v in outcome.verdicts] == ["holds"] * 4
    sheets = {p.name for p in (tmp_path / "fig12" / "plots").glob("*.png")}
    assert {"aruco-class.png", "noise-class.png"} < sheets
    assert outcome.report.read_text().count("data:image/png") == 5


def test_a_ledger_does_a_task_once_and_refuses_other_settings(tmp_path):
    made = []

    def make():
        made.append(1)
        return [{"a": 1.5, "b": float("nan")}]

    ledger = Ledger(tmp_path, {"steps": 3})
    assert ledger.kept("one", make) == ledger.kept("one", make) == [{"a": 1.5, "b": None}]
    assert Ledger(tmp_path, {"steps": 3}).kept("one", make) and len(made) == 1
    with pytest.raises(FulaError, match="other settings"):
        Ledger(tmp_path, {"steps": 4})


def test_a_ledger_tries_failed_tasks_again_and_is_bound_by_no_settings_without_any_done(tmp_path):
    tries = [[{"status": "failed", "error": "e"}], [{"status": "ok"}]]
    ledger = Ledger(tmp_path, {"steps": 3})
    assert ledger.kept("one", lambda: tries[0]) == tries[0] and not ledger.has("one")
    assert Ledger(tmp_path, {"steps": 4}).kept("one", lambda: tries[1]) == tries[1]
    with pytest.raises(FulaError, match="other settings"):
        Ledger(tmp_path, {"steps": 3})


def test_failed_tasks_stand_in_the_page_and_are_tried_again(tmp_path, cache):
    hot = ["options.lr=1e4", "options.sites=[6]", "options.radii=[6.4]"]
    experiment, notes = resolve("mislead-noise", "smoke", NOWHERE, hot), []
    progress = Progress()
    progress.cell_done = notes.append
    for _ in range(2):
        outcome = run(experiment, tmp_path, progress=progress)
        page = outcome.report.read_text()
        assert outcome.failed == 1 and "<strong>1 failed</strong>" in page
        assert "loss" in notes[-1]["error"] and notes[-1]["error"] in page
    assert len(notes) == 2


@pytest.mark.slow
def test_table_1_stands_beside_the_papers(tmp_path, cache):
    one = ["options.models=[{label='ResNet18',model='resnet18'}]", "options.images=20"]
    page = run(resolve("table1", "smoke", NOWHERE, one), tmp_path).report.read_text()
    assert "The paper's table, and ours" in page
    assert "<td>ResNet18</td><td>cifar10_0_robust</td>" in page and ">85.5%<" in page


def _command(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        commands.app(["reproduce", *arguments], prog_name="fula-fast")
    out, err = capsys.readouterr()
    return leaving.value.code or 0, out, err


def test_the_command_lists_every_experiment_with_its_figure(capsys):
    code, out, _ = _command(capsys, "list")
    lines = out.splitlines()
    assert code == 0 and len(lines) == len(recipe_names())
    assert lines[0].split()[:3] == ["table1", "Table", "1"]


def test_the_command_prices_what_it_cannot_run(capsys, tmp_path):
    code, out, _ = _command(
        capsys, "fig8", "--scale", "paper", "--data", str(tmp_path), "--dry-run", "--device", "cpu"
    )
    assert code == 0 and "no cifar10*" in out and "PFLOP" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("fig88",), "unknown experiment 'fig88'"),
        (("fig8", "--scale", "huge"), "unknown scale 'huge'"),
        (("fig8", "--data", "no-such-folder"), "needs data that is not there"),
        (("fig8", "--set", "grid.alpa=1", "--dry-run"), "unknown key 'alpa'"),
        (("fig8", "--scale", "smoke", "--device", "warp"), "device 'warp' is none of"),
        (("fig8", "--scale", "smoke", "--precision", "fp1"), "precision = 'fp1'"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, words):
    code, _, err = _command(capsys, *arguments)
    assert code == commands.BAD_INPUT and words in err and err.count("\n") == 1


def test_all_takes_a_setting_where_it_means_something(capsys, tmp_path):
    code, out, _ = _command(
        capsys, "all", "--scale", "paper", "--data", str(tmp_path), "--dry-run", "--device", "cpu",
        "--end", "resnet34", "--set", "grid.seeds=[0]",
    )  # fmt: skip
    assert code == 0 and len(out.splitlines()) == len(recipe_names()) + 3


def test_the_page_tells_one_donor_in_two_architectures_apart():
    known = _roles(resolve("fig10", "small", NOWHERE, front="vit_tiny"))
    assert known["front", "cifar10_0"] == ("vit_tiny", 0.375)
    assert known["end", "cifar10_0"] == ("resnet18", 0.65)


def test_all_goes_on_behind_one_that_cannot(capsys, tmp_path, monkeypatch):
    tried = []

    def fake(experiment, out, **_):
        tried.append(experiment.name)
        if experiment.name == "fig12":
            raise FulaError("no disk")
        return SimpleNamespace(failed=0)

    monkeypatch.setattr("fula_fast.reproduce.runner.run", fake)
    code, out, _ = _command(capsys, "all", "--scale", "smoke", "--out", str(tmp_path))
    assert code == 1 and len(tried) == len(recipe_names()) and "fig12: failed, no disk" in out


def test_all_without_anything_to_run_fails(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("fula_fast.cli.reproduce.recipe_names", lambda: ("fig8", "fig10"))
    code, _, err = _command(
        capsys, "all", "--scale", "paper", "--data", str(tmp_path), "--device", "cpu"
    )
    assert code == commands.BAD_INPUT and "no experiment can run" in err
