"""A method, a measure and an attack of another package: registered at import, found by the command
line through an entry point, and used by sweep, report, dry run and price like those that ship."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fula_fast.attacks import names
from fula_fast.cli import commands
from fula_fast.errors import FulaError
from fula_fast.measures import registry as measure_registry
from fula_fast.methods import registry as method_registry
from fula_fast.pipelines.sources import registry as source_registry
from fula_fast.report.style import label
from fula_fast.reproduce import price as pricing
from fula_fast.reproduce import resolve
from fula_fast.store import Store

EXTENSION = """
import numpy as np

from fula_fast import attacks, measures, methods, pipelines

methods.register(methods.Method(
    "ends", "Both ends", "trained on the first and the last term", "a toy", "a toy",
    terms=lambda weighting, count: (1.0,) if count == 1 else (0.5, *(0.0,) * (count - 2), 0.5),
))
methods.register(methods.Method(
    "logits", "Logits", "trained on the end's logits", "a toy", "a toy",
    loss="toy_extension:squared", end_logits=True,
))
measures.register(measures.Measure(
    "spread_ratio", "ratio of spreads", measures.Needs.MOMENTS, "toy_extension:spread_ratio",
    0.0, 1.0, 1.0, reads="how alike the total variances are", careful="a toy", source="none",
))
pipelines.register(pipelines.NamedSource("stripes", "toy_extension:stripes", "made up"))
attacks.register(attacks.NamedAttack(
    "dark", "right although darker by eps", "a toy", search="toy_extension:darker",
    search_gradients=3,
))


def stripes(folder, size, channels, download, *, width=2):
    \"\"\"Upright stripes or level ones.\"\"\"
    side = size or 8
    labels = np.arange(260) % 2
    line = ((np.arange(side)[None] + np.arange(260)[:, None]) // width % 2 * 200).astype(np.uint8)
    images = np.where(labels[:, None, None], line[:, None], line[:, :, None])
    images = np.broadcast_to(images[..., None], (260, side, side, channels)).copy()
    sets = (pipelines.ImageSet(images[part], labels[part], ("level", "upright"))
            for part in (slice(200), slice(200, None)))
    return pipelines.Source("stripes", *sets)


def squared(logits, end_logits, labels):
    assert labels is None
    return (logits - end_logits).square().mean((1, 2))


def spread_ratio(pair):
    a, b = pair.x.total, pair.y.total
    return min(a, b) / max(a, b)


def darker(logits, x, labels, options):
    return (x - options.eps).clamp(0, 1)
"""

SPEC = """
name = "toy"
[data]
source = "{source}"
size = 8
train_images = 200
test_images = 60
[donors.a]
model = "resnet18"
width = 4
epochs = 1
[donors.b]
model = "resnet18"
width = 4
seed = 1
epochs = 1
[grid]
front = "a"
end = "b"
sites = [[3, 5], [9, 9]]
methods = ["logits", "ends", "hint", {{ name = "half", logits = 0.5, ends = 0.5 }}]
[protocol]
epochs = 1
batch_size = 64
crop_padding = 1
[evaluation]
measures = ["spread_ratio"]
robust = "dark"
robust_images = 20
[engine]
executor = "{executor}"
precision = "fp32"
device = "cpu"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A package with an entry point in the group `fula_fast`; gone again afterwards."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "toy_extension.py").write_text(EXTENSION)
    about = folder / "toy_extension-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-extension\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fula_fast]\ntoy = toy_extension\n")
    known = [method_registry._METHODS, measure_registry._MEASURES, names._ATTACKS]
    known += [source_registry._SOURCES]
    source_registry.sources()  # those that ship
    before = [dict(each) for each in known]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("FULA_CACHE", str(folder / "cache"))
        yield folder
    sys.modules.pop("toy_extension", None)
    for each, kept in zip(known, before, strict=True):
        each.clear()
        each.update(kept)


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as leaving:
        commands.app(list(arguments), prog_name="fula-fast")
    return leaving.value.code or 0, *capsys.readouterr()


@pytest.fixture
def spec(installed, tmp_path):
    def written(executor: str, source: str = "digits") -> str:
        path = tmp_path / f"{executor}.toml"
        path.write_text(SPEC.format(executor=executor, source=source))
        return str(path)

    return written


def test_without_the_package_their_names_are_refused(tmp_path, capsys):
    """First of all: the fixture stays until the last test here."""
    path = tmp_path / "spec.toml"
    path.write_text(SPEC.format(executor="wave", source="digits"))
    code, _, err = command(capsys, "sweep", str(path), "--dry-run")
    assert code == 2 and "unknown method 'logits'" in err


def test_a_dry_run_counts_the_cells_of_foreign_methods(spec, capsys):
    code, out, _ = command(capsys, "sweep", spec("wave"), "--dry-run")
    assert code == 0 and "2 logits" in out and "2 half" in out


def test_a_foreign_source_is_listed_verified_and_planned(spec, capsys):
    _, out, _ = command(capsys, "data", "list")
    assert "stripes" in out and "made up" in out
    code, out, _ = command(capsys, "data", "verify", "stripes")
    assert code == 0 and "upright" in out
    code, out, err = command(capsys, "sweep", spec("solo", "stripes"), "--dry-run")
    assert code == 0 and "2 ends" in out, err
    wrong = spec("solo", "stripes"), "--set", "data.options.widht=3"
    code, _, err = command(capsys, "sweep", *wrong, "--dry-run")
    assert code == 2 and "no option 'widht'" in err and "'width'" in err


@pytest.mark.slow
def test_a_sweep_of_a_foreign_source(spec, tmp_path, capsys):
    one = ("--set", "grid.methods=['dm']", "--set", "evaluation.robust=none")
    path = spec("solo", "stripes")
    code, _, err = command(capsys, "sweep", path, "--out", str(tmp_path / "run"), *one)
    assert code == 0, err
    assert all(row["accuracy"] >= 0 for row in Store.open(tmp_path / "run").rows())


@pytest.mark.slow
def test_a_sweep_and_its_report_use_what_was_registered(spec, tmp_path, capsys, monkeypatch):
    rows = {}
    for executor in ("wave", "solo"):
        folder = tmp_path / f"run-{executor}"
        code, out, err = command(capsys, "sweep", spec(executor), "--out", str(folder))
        assert code == 0, err
        assert "Both ends" in out and label("ends") == "Both ends"
        rows[executor] = {r["cell"]: r for r in Store.open(folder).rows()}
        # one report shows it, and its plots take longer than a run
        monkeypatch.setattr("fula_fast.report.after_sweep.write_report", lambda folder: None)
    page = (tmp_path / "run-wave" / "report.html").read_text()
    assert "Both ends" in page and "how alike the total variances are" in page
    assert rows["wave"].keys() == rows["solo"].keys() and len(rows["wave"]) == 8
    for cell, row in rows["wave"].items():
        other = rows["solo"][cell]
        for name in ("loss", "term_stitch", "spread_ratio"):
            assert row[name] == pytest.approx(other[name], rel=2e-3), (row["method"], name)
        assert len(row["spread_ratio"]) == 10 - row["end_site"]
        assert all(0 < v <= 1 for v in row["spread_ratio"]) and row["robust_attack"] == "dark"
        assert row["robust_accuracy"] == pytest.approx(other["robust_accuracy"], abs=0.051)
    by_site = {(r["method"], r["end_site"]): r for r in rows["wave"].values()}
    # at the last site the first term is the last one: twice half of it, which is hint
    assert by_site["ends", 9]["loss"] == pytest.approx(by_site["hint", 9]["loss"], rel=1e-6)
    assert by_site["ends", 5]["loss"] != pytest.approx(by_site["hint", 5]["loss"], rel=1e-3)


def test_the_papers_experiments_are_priced_with_them(installed, capsys):
    command(capsys, "sweep", "no-such-spec")  # which loads what is installed
    base = ["grid.sites=[9]", "evaluation.robust_images=20"]
    plain, dark, hint = (
        pricing.price(resolve("fig9", "smoke", Path("no-such-folder"), [*base, *more]), set())
        for more in (
            ["grid.methods=['logits']"],
            ["grid.methods=['logits']", "evaluation.robust=dark"],
            ["grid.methods=['hint']"],
        )
    )
    assert plain.cells == dark.cells and dark.work > plain.work > hint.work


def test_names_are_given_once(installed):
    ours = method_registry.method("hint")
    with pytest.raises(FulaError, match="'hint' is there already"):
        method_registry.register(method_registry.Method("hint", "Mine", "", "", ""))
    assert method_registry.method("hint") is ours
