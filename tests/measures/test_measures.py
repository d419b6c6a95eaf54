"""Every measure against a formula written out in NumPy, and against independent packages.

The packages (pytorch-cka, repsim, rsatoolbox, statsmodels) are no dependencies: their tests are
skipped where they are missing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import spatial, stats
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import cohen_kappa_score, r2_score
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from fula_fast.measures.matrices import between
from fula_fast.measures.outputs import Outputs
from fula_fast.measures.pair import Side, effective_rank

SHAPES = [(60, 7, 11), (60, 11, 7), (60, 5, 90), (40, 90, 70)]
"""(n, p, q): fewer features than samples on both sides, on one, on none."""


@pytest.fixture(params=SHAPES, ids=str)
def matrices(request) -> tuple[np.ndarray, np.ndarray]:
    n, p, q = request.param
    rng = np.random.default_rng(p)
    scales = np.geomspace(3, 0.1, p)  # an uneven spectrum: 99 % of variance cuts some of it
    x = rng.normal(size=(n, p)) * scales + 5
    return x, x @ rng.normal(size=(p, q)) + rng.normal(size=(n, q)) * 2 - 1


def value(name: str, x: np.ndarray, y: np.ndarray, **options) -> float:
    return between(name, torch.from_numpy(x), torch.from_numpy(y), **options)


def near(expected: float) -> object:
    return pytest.approx(expected, abs=1e-9)


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(0)


def basis(x: np.ndarray, variance: float = 1.0) -> np.ndarray:
    u, s, _ = np.linalg.svd(centred(x), full_matrices=False)
    shares = np.cumsum(s**2) / np.sum(s**2)
    if variance < 1:
        return u[:, : np.searchsorted(shares, variance) + 1]
    return u[:, s > 1e-9 * s[0]]


def rho(x: np.ndarray, y: np.ndarray, variance: float = 1.0) -> np.ndarray:
    return np.linalg.svd(basis(x, variance).T @ basis(y, variance), compute_uv=False)


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, Eq. 5."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))


# --- alignment


def test_linear_cka(matrices) -> None:
    x, y = map(centred, matrices)
    k, m = x @ x.T, y @ y.T
    expected = np.sum(k * m) / (np.linalg.norm(k) * np.linalg.norm(m))
    assert value("linear_cka", *matrices) == near(expected)


def test_unbiased_linear_cka(matrices) -> None:
    x, y = matrices
    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert value("unbiased_linear_cka", x, y) == near(expected)


def test_linear_cka_against_packages(matrices) -> None:
    repsim, cka = pytest.importorskip("repsim"), pytest.importorskip("cka")
    x, y = matrices
    expected = repsim.cka([x, y], "linear", "gretton")[0, 1]
    assert value("linear_cka", x, y) == pytest.approx(expected, abs=1e-6)
    expected = cka.cka_from_features(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert value("unbiased_linear_cka", x, y) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
def test_rbf_cka(matrices, bandwidth: float) -> None:
    kernels = []
    for x in matrices:
        sigma = bandwidth * np.median(spatial.distance.pdist(x))
        h = np.eye(len(x)) - 1 / len(x)
        kernels.append(h @ rbf_kernel(x, gamma=1 / (2 * sigma**2)) @ h)
    k, m = kernels
    expected = np.sum(k * m) / (np.linalg.norm(k) * np.linalg.norm(m))
    assert value("rbf_cka", *matrices, bandwidth=bandwidth) == near(expected)


def test_rbf_cka_against_repsim(matrices) -> None:
    repsim = pytest.importorskip("repsim")
    expected = repsim.cka(list(matrices), "rbf", "gretton")[0, 1]
    assert value("rbf_cka", *matrices, bandwidth=1.0) == pytest.approx(expected, abs=1e-6)


# --- canonical correlations


def test_cca(matrices) -> None:
    expected = rho(*matrices)
    assert value("mean_cca", *matrices) == near(expected.mean())
    assert value("r2_cca", *matrices) == near((expected**2).mean())


def test_svcca(matrices) -> None:
    assert value("svcca", *matrices) == near(rho(*matrices, variance=0.99).mean())
    assert value("svcca", *matrices, variance=0.8) == near(rho(*matrices, variance=0.8).mean())


def test_pwcca(matrices) -> None:
    x, y = matrices
    u, found, _ = np.linalg.svd(basis(x).T @ basis(y), full_matrices=False)
    variables = basis(x) @ u
    weights = np.zeros(len(found))
    for i in range(len(found)):
        for j in range(x.shape[1]):
            weights[i] += abs(variables[:, i] @ centred(x)[:, j])
    assert value("pwcca", x, y) == near(np.sum(weights * found) / np.sum(weights))


def test_cca_against_packages() -> None:
    repsim = pytest.importorskip("repsim")
    cancorr = pytest.importorskip("statsmodels.multivariate.cancorr")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6))
    y = x @ rng.normal(size=(6, 9)) + rng.normal(size=(80, 9))
    expected = cancorr.CanCorr(centred(x), centred(y)).cancorr
    assert value("mean_cca", x, y) == pytest.approx(expected.mean(), abs=1e-6)
    assert value("r2_cca", x, y) == pytest.approx(np.mean(expected**2), abs=1e-6)
    assert value("mean_cca", x, y) == pytest.approx(repsim.cca([x, y], "pillai")[0, 1], abs=1e-6)
    assert value("r2_cca", x, y) == pytest.approx(repsim.cca([x, y], "yanai")[0, 1], abs=1e-6)
    assert value("svcca", x, y) == pytest.approx(repsim.svcca([x, y], "pillai")[0, 1], abs=1e-6)
    both = (value("pwcca", x, y) + value("pwcca", y, x)) / 2  # repsim's is made symmetric so
    assert both == pytest.approx(repsim.pwcca([x, y])[0, 1], abs=1e-6)


# --- shapes and regression


def unit(x: np.ndarray, columns: int) -> np.ndarray:
    x = centred(x)
    return np.pad(x / np.linalg.norm(x), ((0, 0), (0, columns - x.shape[1])))


def test_shape_distances(matrices) -> None:
    columns = max(m.shape[1] for m in matrices)
    x, y = (unit(m, columns) for m in matrices)
    rotation, scale = orthogonal_procrustes(x, y)
    distance = np.linalg.norm(x @ rotation - y) ** 2
    assert value("procrustes", *matrices) == near(distance)
    assert value("angular_shape", *matrices) == near(np.arccos(scale))
    _, _, disparity = spatial.procrustes(x, y)  # 1 - nu^2
    assert value("procrustes", *matrices) == near(2 - 2 * np.sqrt(1 - disparity))


def test_linear_r2(matrices) -> None:
    x, y = matrices
    for name, given, sought in (("linear_r2", x, y), ("linear_r2_back", y, x)):
        fitted = LinearRegression().fit(given, sought).predict(given)
        expected = r2_score(sought, fitted, multioutput="variance_weighted")
        assert value(name, x, y) == near(expected)
        q = basis(given)
        expected = np.linalg.norm(q.T @ centred(sought)) ** 2 / np.linalg.norm(centred(sought)) ** 2
        assert value(name, x, y) == near(expected)


def test_ridge(matrices) -> None:
    x, y = matrices
    for name, given, sought in (("linear_r2", x, y), ("linear_r2_back", y, x)):
        penalty = 0.05 * np.linalg.norm(centred(given), 2) ** 2
        fitted = Ridge(penalty, solver="svd").fit(given, sought).predict(given)
        expected = r2_score(sought, fitted, multioutput="variance_weighted")
        assert value(name, x, y, ridge=0.05) == near(expected)


def test_effective_rank(matrices) -> None:
    for x in matrices:
        s = np.linalg.svd(centred(x), compute_uv=False)
        expected = np.exp(stats.entropy(s[s > 1e-9 * s[0]]))
        assert float(effective_rank(Side.of(torch.from_numpy(x)))) == near(expected)


def test_effective_rank_of_even_directions_is_their_number() -> None:
    rng = np.random.default_rng(0)
    even, _ = np.linalg.qr(centred(rng.normal(size=(50, 8))))
    assert float(effective_rank(Side.of(torch.from_numpy(even)))) == near(8)


# --- pairs of samples


@pytest.mark.parametrize("compared", ["spearman", "pearson"])
@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean"])
@pytest.mark.parametrize("center", [True, False])
def test_rsa(matrices, dissimilarity: str, compared: str, center: bool) -> None:
    given = map(centred, matrices) if center else matrices
    a, b = (spatial.distance.pdist(m, dissimilarity) for m in given)
    test = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[compared]
    found = value(f"rsa_{dissimilarity}_{compared}", *matrices, center=center)
    assert found == near(test(a, b).statistic)


@pytest.mark.parametrize("compared", ["spearman", "pearson"])
@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
@pytest.mark.filterwarnings("ignore")
def test_rsa_against_rsatoolbox(matrices, dissimilarity: str, compared: str) -> None:
    rsatoolbox = pytest.importorskip("rsatoolbox")
    rdms = [
        rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(m), method=dissimilarity) for m in matrices
    ]
    if dissimilarity == "euclidean":  # theirs are squared
        rdms = [rsatoolbox.rdm.sqrt_transform(rdm) for rdm in rdms]
    method = {"spearman": "spearman", "pearson": "corr"}[compared]
    expected = rsatoolbox.rdm.compare(*rdms, method=method).item()
    found = value(f"rsa_{dissimilarity}_{compared}", *matrices, center=False)
    assert found == pytest.approx(expected, abs=1e-6)


def neighbours(x: np.ndarray, k: int, metric: str) -> list[set[int]]:
    index = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(x)
    return [set(row) for row in index.kneighbors(return_distance=False)]


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_neighbourhoods(matrices, k: int, distance: str) -> None:
    x, y = (neighbours(centred(m), k, distance) for m in matrices)
    common = np.array([len(a & b) for a, b in zip(x, y, strict=True)])
    options = {"k": k, "distance": distance}
    assert value("mutual_knn", *matrices, **options) == near(common.mean() / k)
    expected = np.mean([len(a & b) / len(a | b) for a, b in zip(x, y, strict=True)])
    assert value("neighbourhood_jaccard", *matrices, **options) == near(expected)


def align(kernels: list[np.ndarray], k: int) -> float:
    """The published code's Align: unbiased HSIC of the entries among both sides' k nearest."""
    mask = np.ones_like(kernels[0])
    for kernel in kernels:
        hollow = kernel - np.diag(np.full(len(kernel), np.inf))
        own = np.zeros_like(kernel)
        np.put_along_axis(own, np.argsort(-hollow, axis=1)[:, :k], 1, axis=1)
        mask = mask * own
    return hsic(mask * kernels[0], mask * kernels[1])


@pytest.mark.parametrize("k", [5, 10])
def test_cknna(matrices, k: int) -> None:
    a, b = (cosine_similarity(m) for m in matrices)
    expected = align([a, b], k) / np.sqrt(align([a, a], k) * align([b, b], k))
    assert value("cknna", *matrices, k=k) == near(expected)


# --- outputs


@pytest.fixture
def outputs() -> tuple[Outputs, Outputs, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 70)
    a = rng.normal(size=(70, 5)) + 2 * np.eye(5)[labels]
    b = a + rng.normal(size=(70, 5))
    models = [Outputs.of(torch.from_numpy(m), torch.from_numpy(labels)) for m in (a, b)]
    return *models, a, b, labels


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_outputs(outputs) -> None:
    a, b, x, y, labels = outputs
    answers = [m.argmax(1) for m in (x, y)]
    assert between("disagreement", a, b) == near(np.mean(answers[0] != answers[1]))
    assert between("agreement_top1", a, b) == near(np.mean(answers[0] == answers[1]))
    right = [found == labels for found in answers]
    assert between("agreement_right_wrong", a, b) == near(np.mean(right[0] == right[1]))
    assert between("kappa", a, b) == near(cohen_kappa_score(*right))
    p, q = softmax(x), softmax(y)
    squared = spatial.distance.jensenshannon(p, q, base=2, axis=1) ** 2
    assert between("jensen_shannon", a, b) == near(squared.mean())
    m = (p + q) / 2
    written = 0.5 * (p * np.log2(p / m) + q * np.log2(q / m)).sum(1)
    assert between("jensen_shannon", a, b) == near(written.mean())
    overlap = (p * q).sum(1) / np.maximum((p**2).sum(1), (q**2).sum(1))
    assert between("agreement_soft", a, b) == near(overlap.mean())
