"""Functional latent alignment: the terms from the stitch's site to the last one (FuLA preprint)."""

from __future__ import annotations

from collections.abc import Mapping

from .registry import Mark, Method
from .slm import SLM
from .weightings import Weighting, term_weights

FULA = Method(
    "fula",
    "FuLA",
    "trained on the mean of term(l) from its site to the last one before the classifier",
    "can the end's inner workings be driven by the front?",
    "where it falls below `hint`, later layers disagree about what the site's activations mean",
    mark=Mark("#009E73", "D", "-"),
    terms=term_weights,
    weighted=True,
)


def with_soft_term(
    objective: Mapping[str, float], weighting: Weighting, count: int
) -> dict[str, float]:
    """The objective with SLM's loss as one more term of FuLA's mean, at a site with `count` terms.

    Of n terms that the weighting keeps, FuLA's mean becomes that of n + 1: its weight is shared as
    n to 1 (option `fula_soft` of the FuLA authors' code). Without a part of FuLA nothing changes.
    """
    share = objective.get(FULA.name)
    if share is None:
        return dict(objective)
    kept = sum(weight > 0 for weight in term_weights(weighting, count))
    soft = objective.get(SLM.name, 0.0) + share / (kept + 1)
    return {**objective, FULA.name: share * kept / (kept + 1), SLM.name: soft}
