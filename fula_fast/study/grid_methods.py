"""The grid's methods: what each minimises under a protocol, at a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import FulaError
from ..methods import TrainingStage, method, objective, with_soft_term
from ..methods.staging import SUM, Stages, joined, timed, united
from ..methods.weightings import term_weights
from .cells import Treatment
from .grid_spec import Mixture
from .protocol import Protocol


@dataclass(frozen=True)
class Objective:
    """A method of the grid, and its weights by trained method (none for a closed form).

    `stages`: objectives that follow each other, of which `weights` are the sum. `combine`: how
    gradients of several methods become one.
    """

    method: str
    weights: dict[str, float]
    stages: Stages = ()
    combine: str = SUM

    @property
    def weighted(self) -> bool:
        """Whether a weighting of the grid or the protocol acts on some part of it."""
        open_ = [stage.objective for stage in self.stages if stage.weighting is None]
        return any(map(weighs, open_ if self.stages else [self.weights]))

    def at(self, rule: Protocol, terms: int) -> Treatment:
        """Under a protocol, at a site with so many terms behind it.

        Raises `FulaError` for stages and weightings that do not fit, and where there is nothing to
        combine.
        """
        how = self._staged(rule, terms) if self.stages else self._plain(self.weights, rule, terms)
        if self.combine == SUM:
            return how
        objectives = [stage.objective for stage in how.stages] or [how.objective]
        if max(map(len, objectives)) < 2:
            raise FulaError(
                f"method '{self.method}': combine = '{self.combine}' needs two methods that are "
                f"minimised together, not {' and '.join(how.objective)} alone; add one, or leave "
                "combine out"
            )
        return replace(how, combine=self.combine)

    def _plain(self, weights: Mapping[str, float], rule: Protocol, terms: int) -> Treatment:
        if rule.fula_soft:
            weights = with_soft_term(weights, rule.weighting, terms)
        return Treatment(self.method, weights, rule)

    def _staged(self, rule: Protocol, terms: int) -> Treatment:
        try:
            stages = timed(self.stages, rule.epochs)
        except FulaError as error:
            raise FulaError(f"method '{self.method}': {error}") from None
        stages = joined(tuple(self._stage(stage, rule, terms) for stage in stages))
        only, *others = stages
        if others:
            whole = united([stage.objective for stage in stages])
            return Treatment(self.method, whole, rule, stages)
        # the only one is a method as any other
        weighting = rule.weighting if only.weighting is None else only.weighting
        rule = rule.model_copy(update={"weighting": weighting})
        return Treatment(self.method, only.objective, rule)

    def _stage(self, stage: TrainingStage, rule: Protocol, terms: int) -> TrainingStage:
        """With its own weighting where one acts, and the soft labels where asked."""
        own = stage.weighting is not None
        weighting = rule.weighting if stage.weighting is None else stage.weighting
        if not weighs(stage.objective):
            return replace(stage, weighting=None)
        term_weights(weighting, terms)
        how = self._plain(stage.objective, rule.model_copy(update={"weighting": weighting}), terms)
        return replace(stage, objective=how.objective, weighting=weighting, own=own)


def weighs(weights: Mapping[str, float]) -> bool:
    """Whether a weighting acts on some part of an objective."""
    return any(method(name).weighted for name in weights)


def objectives(methods: Sequence[str | Mixture]) -> tuple[Objective, ...]:
    """The grid's methods, named ones and mixtures alike."""
    return tuple(
        _mixed(m) if isinstance(m, Mixture) else Objective(m, objective(m)) for m in methods
    )


def _mixed(asked: Mixture) -> Objective:
    stages = tuple(spec.stage for spec in asked.stages or ())
    return Objective(asked.name, asked.objective, stages, asked.combine)
