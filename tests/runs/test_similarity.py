"""Similarity of donors from a spec to its table, against NumPy on activations taken one by one."""

from __future__ import annotations

import csv
import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyarrow import parquet
from scipy import stats

import fula_fast
from fula_fast import FulaError
from fula_fast.cli import commands
from fula_fast.device.memory import used_memory
from fula_fast.measures.sampling import orders, subset
from fula_fast.models import build, save_checkpoint
from fula_fast.pipelines import Batch, load_source
from fula_fast.runs.gathering import gather
from fula_fast.runs.similarity_pass import run_similarity
from fula_fast.store import StoreWarning
from fula_fast.study.plan import plan
from fula_fast.study.similarity_plan import blocks, similarity_spec
from fula_fast.study.similarity_spec import SimilaritySpec

pytestmark = pytest.mark.usefixtures("without_plots")
SAMPLES = 60


def network(seed: int, **options):
    torch.manual_seed(seed)
    options = {"num_classes": 10, "input_shape": (3, 8, 8), "width": 4, **options}
    return build("resnet18", **options).eval()


@pytest.fixture(scope="module")
def networks():
    return {"a": network(0), "b": network(1), "t": vit()}


def vit():
    torch.manual_seed(2)
    options = {"every": 6}
    return build("vit_tiny", num_classes=10, input_shape=(3, 8, 8), **options).eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, networks) -> Path:
    folder = tmp_path_factory.mktemp("donors")
    for name, made in networks.items():
        save_checkpoint(made, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def spec(checkpoints):
    def make(names: str = "ab", **similarity) -> dict:
        usual = {"measures": ["linear_cka"], "samples": SAMPLES, "null": 0}
        return {
            "data": {"source": "digits", "size": 8, "test_images": 90},
            "donors": {n: {"checkpoint": str(checkpoints / f"{n}.safetensors")} for n in names},
            "evaluation": {"batch_size": 40},
            "similarity": usual | similarity,
            "engine": {"device": "cpu", "precision": "fp32"},
        }

    return make


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, np.ndarray]:
    """The run's test images, as floats, and labels."""
    test = load_source("digits", size=8).test.evenly(90)
    pixels = torch.from_numpy(np.asarray(test.images)).permute(0, 3, 1, 2).float() / 255
    return pixels, test.labels


def activations(model, pixels: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [model.run(pixels, 0, s).double().numpy() for s in range(1, model.num_sites + 1)]


def cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return np.sum((x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def neighbours(x: np.ndarray, k: int) -> list[set[int]]:
    distances = np.square(x[:, None] - x[None]).sum(-1)
    np.fill_diagonal(distances, np.inf)
    return [set(row[:k]) for row in np.argsort(distances, axis=1)]


def knn(x: np.ndarray, y: np.ndarray, k: int) -> float:
    pairs = zip(neighbours(x, k), neighbours(y, k), strict=True)
    return float(np.mean([len(a & b) / k for a, b in pairs]))


def run(spec: dict, folder: Path, **options):
    return fula_fast.similarity(spec, folder, quiet=True, **options)


def every(function, xs, ys) -> np.ndarray:
    return np.array([[function(x, y) for y in ys] for x in xs])


# --- numbers


def test_moments_see_all_images_and_pairs_of_samples_the_chosen_ones(
    spec, networks, images, tmp_path
):
    asked = spec(measures=["linear_cka", "mutual_knn"], options={"mutual_knn": {"k": 5}})
    found = run(asked, tmp_path / "r")
    x, y = ([a.mean((2, 3)) for a in activations(networks[n], images[0])] for n in "ab")
    expected = every(cka, x, y)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found.matrix("linear_cka", "a", "b"), expected, atol=1e-5)
    taken = subset(90, SAMPLES, seed=0)
    x, y = ([a[taken] for a in side] for side in (x, y))
    expected = every(lambda a, b: knn(a, b, 5), x, y)
    np.testing.assert_allclose(found.matrix("mutual_knn", "a", "b"), expected, atol=0.011)
    counts = {(r["measure"], r["n"], r["samples"]) for r in found.rows}
    assert counts == {("linear_cka", 90, SAMPLES), ("mutual_knn", SAMPLES, SAMPLES)}


def test_flat_features_and_their_own_table(spec, networks, images, tmp_path):
    asked = spec(measures=["linear_cka", "linear_r2"], features={"linear_cka": "flat"})
    found = run(asked, tmp_path / "r")
    x, y = ([a.reshape(90, -1) for a in activations(networks[n], images[0])] for n in "ab")
    np.testing.assert_allclose(found.matrix("linear_cka", "a", "b"), every(cka, x, y), atol=1e-5)
    words = {(r["measure"], r["features"]) for r in found.rows}
    assert words == {("linear_cka", "flat"), ("linear_r2", "mean")}


def test_positions_are_rows_and_the_fronts_maps_take_the_ends_size(
    spec, networks, images, tmp_path
):
    found = run(spec(features="positions", samples=20), tmp_path / "r")
    front, end = (activations(networks[n], images[0]) for n in "ab")

    def of_positions(x, y):
        x = F.interpolate(
            torch.from_numpy(x), size=y.shape[2:], mode="bilinear", align_corners=False
        ).numpy()
        rows = [a.transpose(0, 2, 3, 1).reshape(-1, a.shape[1]) for a in (x, y)]
        return cka(*rows)

    assert len({a.shape[2:] for a in end}) > 1
    expected = every(of_positions, front, end)
    np.testing.assert_allclose(found.matrix("linear_cka", "a", "b"), expected, atol=1e-5)


def test_tokens_against_maps(spec, networks, images, tmp_path):
    asked = spec("at", pairs=[["a", "t"]], features=["flat", "cls"])
    found = run(asked, tmp_path / "r")
    x = [a.reshape(90, -1) for a in activations(networks["a"], images[0])]
    y = [a[:, 0] if a.ndim == 3 else a for a in activations(networks["t"], images[0])]
    np.testing.assert_allclose(found.matrix("linear_cka", "a", "t"), every(cka, x, y), atol=1e-5)
    assert {r["features"] for r in found.rows} == {"flat/cls"}


def test_chance_is_that_of_the_shared_permutations(spec, networks, images, tmp_path):
    found = run(spec(null=19), tmp_path / "r")
    taken = subset(90, SAMPLES, seed=0)
    x, y = ([a.mean((2, 3))[taken] for a in activations(networks[n], images[0])] for n in "ab")
    observed = every(cka, x, y)
    null = np.stack([every(cka, x, [b[o] for b in y]) for o in orders(SAMPLES, 19, seed=0)])
    p = (1 + (null >= observed).sum(0)) / 20
    np.testing.assert_allclose(found.matrix("linear_cka", "a", "b", "p"), p)
    best = (1 + (null.max((1, 2)) >= observed.max()).sum()) / 20
    assert set(found.matrix("linear_cka", "a", "b", "p_best").ravel()) == {best}
    together = found.matrix("linear_cka", "a", "b", "p_family")
    assert (together >= p - 1e-12).all() and 1 / 20 <= together.min() < together.max()
    tau = np.sort(np.concatenate([observed[None], null]), axis=0)[18]
    calibrated = np.where(observed > tau, (observed - tau) / (1 - tau), 0)
    np.testing.assert_allclose(
        found.matrix("linear_cka", "a", "b", "calibrated"), calibrated, atol=1e-5
    )


def test_intervals_hold_the_value_and_outputs_have_one_cell(spec, networks, images, tmp_path):
    asked = spec(measures=["linear_cka", "agreement_top1", "jensen_shannon"], intervals=40)
    found = run(asked, tmp_path / "r")
    with torch.no_grad():
        logits = [networks[n](images[0]).double().numpy() for n in "ab"]
    same = np.mean(logits[0].argmax(1) == logits[1].argmax(1))
    assert found.matrix("agreement_top1", "a", "b") == pytest.approx(np.array([[same]]))
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits)
    middle = (p + q) / 2
    js = np.mean([stats.entropy(a, m, 2) / 2 + stats.entropy(b, m, 2) / 2
                  for a, b, m in zip(p, q, middle, strict=True)])  # fmt: skip
    assert found.matrix("jensen_shannon", "a", "b") == pytest.approx(np.array([[js]]), abs=1e-6)
    low, high = (found.matrix("linear_cka", "a", "a", end) for end in ("low", "high"))
    assert (low <= high).all() and (high - low).max() > 0.01
    assert np.diag(high) == pytest.approx(1)


def test_effective_ranks_stand_beside_second_moments(spec, networks, images, tmp_path):
    found = run(spec(measures=["linear_cka", "mutual_knn"]), tmp_path / "r")
    x = activations(networks["b"], images[0])[4].mean((2, 3))
    shares = np.linalg.svd(x - x.mean(0), compute_uv=False)
    shares = shares / shares.sum()
    expected = np.exp(-np.sum(shares * np.log(shares)))
    ranks = found.matrix("linear_cka", "a", "b", "end_effective_rank")[:, 4]
    np.testing.assert_allclose(ranks, expected, rtol=1e-4)


# --- the run


def test_the_table_has_every_pair_site_and_measure_once(spec, tmp_path):
    asked = spec(measures=["linear_cka", "kappa"], donors=["a", "b"])
    found = run(asked, tmp_path / "r")
    keys = [(r["front"], r["end"], r["measure"], r["front_site"], r["end_site"])
            for r in found.rows]  # fmt: skip
    assert len(set(keys)) == len(keys) == 3 * (81 + 1)
    written = parquet.read_table(tmp_path / "r" / "similarity.parquet").to_pylist()
    assert written == list(found.rows)
    with (tmp_path / "r" / "similarity.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["value"]) == found.rows[0]["value"]
    assert found.matrix("linear_cka", "a", "a").diagonal() == pytest.approx(1)


def test_one_sweep_does_both(spec, tmp_path):
    grid = {"front": "a", "end": "b", "sites": [[3, 5]], "methods": ["dm"]}
    asked = spec() | {"grid": grid, "protocol": {"dm_stats": "stale", "dm_samples": 30}}
    found = fula_fast.sweep(asked, tmp_path / "both", quiet=True)
    assert [row["status"] for row in found.rows] == ["ok"]
    alone = run(asked, tmp_path / "alone")
    assert {(r["front"], r["end"]) for r in alone.rows} == {("a", "b")}
    assert found.similarity.rows == alone.rows


def test_resume_does_the_missing_pairs_alone(spec, tmp_path):
    folder = tmp_path / "r"
    whole = run(spec(null=5), folder)
    with pytest.raises(FulaError, match="--resume"):
        run(spec(null=5), folder)
    first, *others = sorted((folder / "similarity").glob("*.json"))
    damaged = others.pop()
    first.unlink()
    damaged.write_text(damaged.read_text().replace("value", "walue"))
    times = [path.stat().st_mtime_ns for path in others]
    with pytest.warns(StoreWarning, match="similarity of two donors"):
        again = run(spec(null=5), folder, resume=True)
    assert again.rows == whole.rows
    assert [path.stat().st_mtime_ns for path in others] == times


def test_a_dry_run_writes_nothing_and_names_the_pairs(spec, tmp_path, capsys):
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(spec(null=20)))
    with pytest.raises(SystemExit) as leaving:
        commands.app(["similarity", str(tmp_path / "s.toml"), "--dry-run"], prog_name="fula-fast")
    out = capsys.readouterr().out
    assert not leaving.value.code and list(tmp_path.iterdir()) == [tmp_path / "s.toml"]
    assert "1 measures on 90 images" in out and "chance on 60" in out
    assert "cannot fall below 1.00" in out


# --- refusals


def archive(path: Path, order: np.ndarray, classes: list[str]) -> str:
    source = load_source("digits", size=8)
    test = source.test.evenly(60)
    np.savez(
        path, classes=np.array(classes),
        train_x=source.train.images[:50], train_y=source.train.labels[:50],
        test_x=test.images[order], test_y=test.labels[order],
    )  # fmt: skip
    return str(path)


def test_images_in_another_order_are_refused(spec, tmp_path):
    names = [f"digit {i}" for i in range(10)]
    asked = spec()
    asked["data"] = {"source": "npz", "size": 8, "options": {
        "path": archive(tmp_path / "d.npz", np.arange(60), names)}}  # fmt: skip
    run(asked, tmp_path / "r")
    (tmp_path / "r" / "similarity").glob("*.json").__next__().unlink()
    archive(tmp_path / "d.npz", np.arange(60)[::-1], names)
    with pytest.raises(FulaError, match="^the data .*another order"):
        run(asked, tmp_path / "r", resume=True)


def test_labels_in_another_order_are_refused(spec, tmp_path):
    names = [f"digit {i}" for i in range(10)]
    asked = spec()
    for key, classes in (("d", names), ("b", names[::-1])):
        path = archive(tmp_path / f"{key}.npz", np.arange(60), classes)
        table = {"source": "npz", "size": 8, "options": {"path": path}}
        (asked if key == "d" else asked["donors"]["b"])["data"] = table
    with pytest.raises(FulaError, match="class 'digit 0' has label 9"):
        run(asked, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measures": ["linear_cca"]}, "unknown measure 'linear_cca'; did you mean"),
        ({"measures": []}, "measures is empty"),
        ({"features": "cls"}, "acts on no site of these donors, which have maps"),
        ({"features": {"kappa": "mean"}}, "names 'kappa', which is not among the measures"),
        ({"features": "whole"}, "'whole'"),
        ({"features": ["flat", "positions"]}, "one word a kind"),
        ({"options": {"linear_cka": {"k": 5}}}, "takes no options"),
        ({"options": {"mutual_knn": {"k": 5}}}, "names 'mutual_knn', which is not among"),
        ({"measures": ["mutual_knn"], "options": {"mutual_knn": {"k": "5"}}}, "is no int"),
        ({"intervals": 20}, "at least 39"),
        ({"donors": ["a"], "pairs": [["a", "b"]]}, "donors or pairs"),
        ({"pairs": [["a", "c"]]}, "similarity names donor 'c'"),
        ({"measures": ["cknna"], "samples": 3}, "cknna needs at least 4"),
    ],
)
def test_wrong_inputs(spec, tmp_path, change, message):
    with pytest.raises(FulaError, match=message):
        run(spec(**change), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_run_that_would_not_fit_says_so_before_it_starts(spec, tmp_path):
    asked = spec(measures=["mutual_knn"], features="positions")
    asked["engine"]["memory"] = "1GiB"
    with pytest.raises(FulaError, match=r"needs \d+\.\d+ GiB .* budget is 1.00 GiB; lower samples"):
        run(asked, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("measure", ["mutual_knn", "rsa_correlation_spearman", "linear_cka"])
def test_the_peak_stays_below_the_prediction(spec, tmp_path, monkeypatch, measure):
    asked = spec(measures=[measure], samples=700, null=2, split="train", features="flat")
    predicted = plan(similarity_spec(asked)).similarity.memory
    peak = []

    def watched(*arguments):
        gc.collect()
        before, stop = used_memory(), threading.Event()

        def watch():
            while not stop.wait(0.002):
                peak.append(used_memory() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            run_similarity(*arguments)
        finally:
            stop.set()
            watcher.join()

    monkeypatch.setattr("fula_fast.runs.similarity_pass.run_similarity", watched)
    run(asked, tmp_path / "r")
    assert max(peak) < predicted


def test_activations_that_are_not_finite_are_named(images):
    broken = network(0)
    with torch.no_grad():
        next(iter(broken.stages[2].parameters())).fill_(float("nan"))
    shapes = broken.site_shapes
    wanted = {
        ("b", "b"): blocks(SimilaritySpec(measures=["linear_cka"]), shapes, shapes, ("b", "b"))
    }
    batch = Batch(images[0][:5], torch.zeros(5, dtype=torch.int64), torch.arange(5))
    with pytest.raises(FulaError, match="'b' gives NaN or infinity at site 3"), torch.no_grad():
        gather({"b": broken}, [batch], 5, np.arange(3), wanted, outputs=False, device="cpu")


def test_outputs_of_other_tasks_are_not_compared(spec, tmp_path):
    table = spec("a", measures=["linear_cka", "kappa"])
    with pytest.raises(FulaError, match="kappa compare answers, but donor 'five' has 5 classes"):
        run(table, tmp_path / "r", models={"five": network(3, num_classes=5)})
