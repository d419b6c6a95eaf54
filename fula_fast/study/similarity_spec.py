"""The `[similarity]` table of a spec: which measures of which donors, on which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ..errors import FulaError, nearest
from ..measures.registry import (
    COMPARES,
    MAP_FEATURES,
    TOKEN_FEATURES,
    Features,
    Measure,
    Needs,
    Option,
    measure,
    measures,
)
from .donor_spec import SpecTable

LEVEL = 0.95
"""Of the intervals; a cell is above chance where its corrected p is at most 1 - LEVEL."""
DEFAULT = "default"
"""The key of `features` for measures that have none of their own."""

_USUAL = (
    "linear_cka", "unbiased_linear_cka", "mean_cca", "angular_shape", "linear_r2",
    "rsa_correlation_spearman", "mutual_knn", "agreement_top1", "agreement_soft", "kappa",
)  # fmt: skip


def _names(value: Any) -> Any:
    if value == "all":
        return tuple(each.name for each in measures(*COMPARES))
    return value if isinstance(value, list | tuple) else (value,)


def _features(value: Any) -> Any:
    """A word or a list of words stands for all measures."""
    given = value if isinstance(value, Mapping) else {DEFAULT: value}
    return {k: v if isinstance(v, list | tuple) else (v,) for k, v in given.items()}


class SimilaritySpec(SpecTable):
    """Similarity of donors without training: every site of one against every site of the other.

    - `measures`: names, or "all".
    - `donors`: each is compared with itself and with every other one; unset, and without `pairs`:
      the grid's pairs, or all donors where there is no grid.
    - `pairs`: [front, end] names, instead of `donors`.
    - `split`: the images.
    - `features`: how activations become matrices: a word, or words (one for maps, one for tokens),
      for all measures or in a table by measure, with `default` for the others; unset: each
      measure's own, the mean over positions.
    - `options`: of measures, in tables by measure.
    - `samples`: images on which pairs of samples are compared and everything is tested against
      chance; second moments and outputs take all images for their value.
    - `null`: permutations behind p, 0 for none.
    - `intervals`: half samples behind the 95 % intervals, 0 for none.
    - `seed`: of all that is drawn.
    """

    measures: Annotated[tuple[str, ...], BeforeValidator(_names)] = _USUAL
    donors: Annotated[
        tuple[str, ...], BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,))
    ] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    split: Literal["test", "train"] = "test"
    features: Annotated[dict[str, tuple[Features, ...]], BeforeValidator(_features)] = Field(
        default_factory=dict
    )
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    samples: int = Field(default=2000, ge=2)
    null: int = Field(default=200, ge=0)
    intervals: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        valid = [each.name for each in measures(*COMPARES)]
        for name in value:
            if name not in valid:
                raise ValueError(f"unknown measure '{name}'{nearest(name, valid)}")
        if not value:
            raise ValueError("measures is empty; nothing would be computed")
        return tuple(dict.fromkeys(value))

    @field_validator("intervals")
    @classmethod
    def _enough(cls, value: int) -> int:
        least = ceil(2 / (1 - LEVEL) - 1 - 1e-9)
        if 0 < value < least:
            raise ValueError(
                f"{value} half samples do not show the tails of a {LEVEL:.0%} interval; give at "
                f"least {least}, or 0 for no intervals"
            )
        return value

    @model_validator(mode="after")
    def _of_chosen_measures(self) -> SimilaritySpec:
        if self.donors and self.pairs:
            raise ValueError("give donors or pairs, one of the two")
        for key in ("features", "options"):
            known = {*self.measures, *([DEFAULT] if key == "features" else [])}
            for name in getattr(self, key):
                if name not in known:
                    raise ValueError(
                        f"{key} names '{name}', which is not among the measures"
                        f"{nearest(name, known)}"
                    )
        for name, words in self.features.items():
            for kind in (MAP_FEATURES, TOKEN_FEATURES):
                mine = [w for w in words if w in kind and not _shared(w)]
                if len(mine) > 1 or len(set(words)) < len(words):
                    raise ValueError(f"features.{name} = {list(map(str, words))}: one word a kind")
        for name, given in self.options.items():
            _check_options(measure(name), given)
        for name in self.features:
            if name != DEFAULT and measure(name).needs is Needs.OUTPUTS:
                raise ValueError(f"features.{name}: it compares outputs, which have no features")
        return self

    def paired(self, grid: Sequence[tuple[str, str]], donors: Sequence[str]) -> SimilaritySpec:
        """With its pairs written out; `grid`: the grid's, empty without one."""
        pairs = tuple(dict.fromkeys(self.pairs or grid))
        if not pairs or self.donors:
            pairs = tuple(combinations_with_replacement(dict.fromkeys(self.donors or donors), 2))
        return self.model_copy(update={"pairs": pairs, "donors": ()})

    def words(self, name: str) -> tuple[Features, Features]:
        """A measure's features of maps and of tokens."""
        given = self.given(name)
        chosen = measure(name)
        return (
            _word(given, MAP_FEATURES, chosen.map_features),
            _word(given, TOKEN_FEATURES, chosen.token_features),
        )

    def given(self, name: str) -> tuple[Features, ...]:
        """The words that the spec sets for a measure."""
        return self.features.get(name, self.features.get(DEFAULT, ()))

    def chosen(self, *needs: Needs) -> dict[str, dict[str, Option]]:
        """The measures of these needs, each with its options."""
        found = (name for name in self.measures if measure(name).needs in needs)
        return {name: dict(self.options.get(name, {})) for name in found}


def _word(given: Sequence[Features], valid: Sequence[Features], usual: Features) -> Features:
    """The given word of a kind: one of that kind alone before one that both kinds know."""
    mine = sorted((w for w in given if w in valid), key=_shared)
    return mine[0] if mine else usual


def _shared(word: Features) -> bool:
    return word in MAP_FEATURES and word in TOKEN_FEATURES


def _check_options(chosen: Measure, given: Mapping[str, Any]) -> None:
    """Names and kinds of a measure's options; whole numbers serve as floats."""
    try:
        chosen.bound(given)
    except FulaError as error:
        raise ValueError(str(error)) from None
    for name, value in given.items():
        kind = type(chosen.options[name])
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            raise ValueError(
                f"options.{chosen.name}.{name} = {value!r} is no {kind.__name__}; its default is "
                f"{chosen.options[name]!r}"
            )
