"""The measures that ship, one record each; importing this module registers them.

RV (Robert & Escoufier 1976) is missing on purpose: of centred matrices it is `linear_cka`.
"""

from __future__ import annotations

import math
from typing import Any

from .registry import Invariance, Measure, Needs, register

_HOME = "fula_fast.measures."
_SHAPE = frozenset({Invariance.SHIFT, Invariance.SCALE, Invariance.ROTATION})
_ALL = frozenset(Invariance)


def _moments(name: str, label: str, function: str, **fields: Any) -> None:
    given = {"low": 0.0, "high": 1.0, "best": 1.0, "invariances": _SHAPE} | fields
    register(Measure(name, label, Needs.MOMENTS, _HOME + function, **given))


def _pairs(name: str, label: str, function: str, prepare: str, **fields: Any) -> None:
    given = {"low": 0.0, "high": 1.0, "best": 1.0, "invariances": _SHAPE} | fields
    register(Measure(name, label, Needs.PAIRS, _HOME + function, prepare=_HOME + prepare, **given))


def _outputs(name: str, label: str, function: str, **fields: Any) -> None:
    given = {"low": 0.0, "high": 1.0, "best": 1.0, "least": 1} | fields
    register(Measure(name, label, Needs.OUTPUTS, _HOME + function, **given))


_moments(
    "linear_cka",
    "linear CKA",
    "alignment:linear_cka",
    reads="how alike the samples' inner products are; large directions count most",
    careful="grows with features and falls with samples: compare with chance, or take the unbiased "
    "one; a few outlying samples or one large direction decide it. The RV coefficient is the same",
    source="Kornblith et al. 2019",
)
_moments(
    "unbiased_linear_cka",
    "unbiased linear CKA",
    "alignment:unbiased_linear_cka",
    low=-1.0,
    least=4,
    reads="linear CKA whose mean is zero for independent sides, whatever the width",
    careful="its spread grows where samples are few; slightly negative values mean zero",
    source="Song et al. 2012, Eq. 5",
)
_moments(
    "mean_cca",
    "mean CCA",
    "canonical:mean_cca",
    invariances=_ALL,
    reads="mean correlation that linear maps of both sides reach, every direction alike",
    careful="noise directions count as much as large ones; 1 by construction where one side's rank "
    "is n - 1, so it needs many more samples than features",
    source="Raghu et al. 2017; Kornblith et al. 2019, Eq. 7",
)
_moments(
    "r2_cca",
    "R² CCA",
    "canonical:r2_cca",
    invariances=_ALL,
    reads="mean squared canonical correlation",
    careful="as mean CCA",
    source="Kornblith et al. 2019, Eq. 6",
)
_moments(
    "svcca",
    "SVCCA",
    "canonical:svcca",
    options={"variance": 0.99},
    reads="mean CCA of the principal components that hold 99 % of each side's variance",
    careful="the number of components jumps with the threshold; not comparable between widths",
    source="Raghu et al. 2017",
)
_moments(
    "pwcca",
    "PWCCA",
    "canonical:pwcca",
    symmetric=False,
    invariances=frozenset({Invariance.SHIFT, Invariance.SCALE}),
    reads="CCA weighted by how much of the first side each direction accounts for",
    careful="directional: weights come from the side named first; published code differs in them",
    source="Morcos et al. 2018",
)
_moments(
    "procrustes",
    "Procrustes distance",
    "shape:procrustes",
    high=2.0,
    best=0.0,
    reads="what is left of two shapes of size 1 after the best rotation, squared",
    careful="falls with features by chance alone; 0 is equal, 2 nothing shared",
    source="Schönemann 1966; Ding et al. 2021",
)
_moments(
    "angular_shape",
    "angular shape distance",
    "shape:angular_shape",
    high=math.pi / 2,
    best=0.0,
    reads="angle between two shapes after the best rotation: a metric",
    careful="as the Procrustes distance, of which it is a monotone map",
    source="Williams et al. 2021",
)
_moments(
    "linear_r2",
    "linear R²",
    "shape:linear_r2",
    symmetric=False,
    options={"ridge": 0.0},
    reads="share of the second side's variance that a linear map of the first explains",
    careful="in sample: 1 where the first side's rank is n - 1; it says that a map exists, not "
    "that the second network can use the result",
    source="Kornblith et al. 2019, Eq. 9",
)
_moments(
    "linear_r2_back",
    "linear R², reversed",
    "shape:linear_r2_back",
    symmetric=False,
    options={"ridge": 0.0},
    reads="share of the first side's variance that a linear map of the second explains",
    careful="as linear R²",
    source="Kornblith et al. 2019, Eq. 9",
)
_pairs(
    "rbf_cka",
    "RBF CKA",
    "alignment:kernel_cka",
    "alignment:rbf_kernel",
    options={"bandwidth": 0.5},
    reads="how alike near samples are; the smaller the bandwidth, the more local",
    careful="near 1 for any two sides as the bandwidth shrinks, and linear CKA as it grows; biased "
    "as linear CKA is",
    source="Kornblith et al. 2019",
)
for _how in ("spearman", "pearson"):
    for _kind, _said in (
        ("correlation", "1 − Pearson"),
        ("cosine", "cosine"),
        ("euclidean", "Euclidean"),
    ):
        _pairs(
            f"rsa_{_kind}_{_how}",
            f"RSA ({_said}, {_how.capitalize()})",
            "dissimilarity:rsa",
            "dissimilarity:standardised",
            low=-1.0,
            least=3,
            options={"center": True},
            fixed={"dissimilarity": _kind, "compared": _how},
            invariances=_SHAPE - {Invariance.ROTATION} if _kind == "correlation" else _SHAPE,
            reads="whether the two sides agree on which samples differ more",
            careful="pairs of samples are not independent: take p from the permutations; published "
            "values mostly leave columns uncentred (center = false), which cosine and Pearson see",
            source="Kriegeskorte et al. 2008",
        )
_pairs(
    "mutual_knn",
    "mutual k-NN",
    "neighbours:mutual_knn",
    "neighbours:neighbourhoods",
    options={"k": 10, "distance": "euclidean"},
    settles=False,
    reads="mean share of the nearest samples that both sides have in common",
    careful="depends on k and on the number of samples; chance is k / (n − 1)",
    source="Huh et al. 2024",
)
_pairs(
    "cknna",
    "CKNNA",
    "neighbours:cknna",
    "neighbours:similar_neighbours",
    low=-1.0,
    least=4,
    matrices=2,
    symmetric=False,
    settles=False,
    options={"k": 10, "center": False},
    invariances=frozenset({Invariance.SCALE, Invariance.ROTATION}),
    reads="unbiased CKA of the cosines between mutual nearest neighbours alone",
    careful="as mutual k-NN; not quite symmetric; noisy where few neighbours are mutual",
    source="Huh et al. 2024",
)
_pairs(
    "neighbourhood_jaccard",
    "neighbourhood Jaccard",
    "neighbours:neighbourhood_jaccard",
    "neighbours:neighbourhoods",
    options={"k": 10, "distance": "euclidean"},
    settles=False,
    reads="mean overlap of the two sets of nearest samples over their union",
    careful="as mutual k-NN, of which it is nearly a monotone map",
    source="Wang et al. 2020; Klabunde et al. 2024",
)
_outputs(
    "disagreement",
    "disagreement",
    "outputs:disagreement",
    best=0.0,
    reads="share of samples that get another top-1 class",
    careful="two good models cannot disagree often: read it beside both accuracies",
    source="Madani et al. 2004",
)
_outputs(
    "jensen_shannon",
    "Jensen–Shannon divergence",
    "outputs:jensen_shannon",
    best=0.0,
    reads="mean divergence of the two predicted distributions, in bits",
    careful="follows calibration and temperature as well as answers",
    source="Lin 1991",
)
_outputs(
    "agreement_top1",
    "same answer",
    "outputs:same_answer",
    reads="share of samples that get the same top-1 class",
    careful="as disagreement",
    source="Madani et al. 2004",
)
_outputs(
    "agreement_soft",
    "soft agreement",
    "outputs:soft_agreement",
    reads="overlap of the two predicted distributions, 1 only where they are equal",
    careful="follows calibration and temperature as well as answers",
    source="protocol, Measures",
)
_outputs(
    "agreement_right_wrong",
    "both right or both wrong",
    "outputs:hard_agreement",
    reads="share of samples on which both are right or both are wrong",
    careful="high for any two good models, and for two bad ones (two at 10 % agree at 0.82 by "
    "chance): read kappa beside it",
    source="protocol, Measures",
)
_outputs(
    "kappa",
    "error consistency κ",
    "outputs:error_consistency",
    low=-1.0,
    reads="agreement of being right beyond that of independent models of the same accuracies",
    careful="0 where a model is always right or always wrong; undefined where both are always "
    "right, or both always wrong: a stitched model's is empty, donors' is 0; noisy near there",
    source="Geirhos et al. 2020",
)


def _of_stitched(name: str, label: str, needs: Needs, function: str, **fields: Any) -> None:
    register(Measure(name, label, needs, _HOME + function, **fields))


_TERM = "‖h − g‖ / ‖g‖ over the test set"
_of_stitched(
    "terms",
    "terms",
    Needs.SITES,
    "sites:terms",
    low=0.0,
    high=math.inf,
    best=0.0,
    reads="how far the stitched model is from the end, site by site",
    careful="relative to the end's own norm: a site with a large mean looks close",
    source="FuLA preprint, Eq. 5",
    columns={"terms": f"list, from the cell's own end site to the last: {_TERM}"},
)
_of_stitched(
    "penultimate",
    "penultimate term",
    Needs.SITES,
    "sites:penultimate",
    low=0.0,
    high=math.inf,
    best=0.0,
    reads="the term at the last site, before the classifier",
    careful="as terms",
    source="FuLA preprint, Eq. 5",
    columns={"penultimate": f"at the last site: {_TERM}"},
)
_of_stitched(
    "r2",
    "R²",
    Needs.SITES,
    "sites:r_squared",
    low=-math.inf,
    high=1.0,
    best=1.0,
    reads="what share of the end's activations the stitched model reproduces; below 0: less than a "
    "constant would",
    careful="around one mean of all entries, means that differ between channels count as "
    "explained; around each channel's own mean they do not",
    source="coefficient of determination",
    columns={
        "r2": "list, from the cell's own end site to the last: 1 − Σ(h − g)² / Σ(g − m)², m the "
        "one mean of all entries",
        "r2_channel": "the same with m each channel's (feature's) mean over images and positions",
    },
)
_of_stitched(
    "rank",
    "rank of the stitch",
    Needs.STITCH,
    "rank:rank_and_condition",
    low=0.0,
    high=math.inf,
    best=math.inf,
    reads="how many directions the stitch passes on",
    careful="numerical: singular values below a share of the largest count as zero",
    source="Smith et al. 2025",
    columns={
        "stitch_rank": "numerical rank of the stitch's weight",
        "stitch_condition": "its largest over its smallest singular value",
    },
)
