"""What a study believes of its objectives after some history: one posterior, known costs, and the free region."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autopeft.objectives.front import FrontPoint, losses_of
from autopeft.objectives.objective import COSTS, Knowledge, Objective
from autopeft.objectives.pareto import Array, non_dominated
from autopeft.objectives.reference import reference_point
from autopeft.search.acquisition import FreeRegion
from autopeft.search.costs import Cost, Learned, cost_of
from autopeft.search.fidelity import AtFullBudget, fit_rungs
from autopeft.search.observations import front_points, outcomes
from autopeft.search.searcher import SearchProblem
from autopeft.search.source_model import SourceModel
from autopeft.search.surrogate import Averaged, SurrogateError, fit
from autopeft.search.trial import History, TrialState
from autopeft.search.warm_start import WarmProcess, with_sources
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

MIN_OUTCOMES = 3
"""Outcomes below which a surrogate is not fitted."""

_TIE_BREAK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """Losses of configurations as believed, the uncertain objective first; immutable but for what it remembers."""

    space: SearchSpace
    process: Averaged | AtFullBudget | WarmProcess | None
    """Posterior of the uncertain objective; None when every objective is known, the first then takes its place."""
    costs: tuple[Cost, ...]
    """The other objectives (all objectives when `process` is None)."""
    losses: Array
    """`[t, m]` of evaluated and pending configurations, in units of `scale` above `origin`."""
    origin: Array
    """`[m]` best measured losses."""
    scale: Array
    """`[m]` reference less `origin`, so the reference is 1 everywhere."""
    evaluated: tuple[Configuration, ...]
    """Configurations of the rows of `losses`."""
    _features: dict[Configuration, Array] = field(default_factory=dict, repr=False)
    _costs: dict[Configuration, Array] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        problem: SearchProblem,
        history: History,
        *,
        sources: Sequence[SourceModel] = (),
        largest: Configuration | None = None,
    ) -> "Belief":
        """The belief after `history`, its running trials fantasised, and after what `sources` say.

        The evaluated trials' uncertain objective is taken at its posterior mean, not as observed, so that a lucky
        run does not become a front point that nothing can beat.

        Args:
            problem: What is searched.
            history: The trials.
            sources: Models of past studies.
            largest: A configuration as dear as any, so that what no trial has cost yet is not out of reach.

        Raises:
            SurrogateError: Too few outcomes, or the fit failed.
        """
        objectives = ordered(problem.objectives)
        learned = objectives[0].knowledge is Knowledge.LEARNED
        points = front_points(history, problem.objectives)
        if not points:
            raise SurrogateError("no trial has completed")
        process = _fitted(problem, history, objectives[0], sources) if learned else None
        known = objectives[1:] if learned else objectives
        costs = tuple(cost_of(problem.space, one, history, seed=problem.seed) for one in known)
        measured = losses_of(points, objectives)
        reference = reference_point(_reaching(measured, costs, largest, problem.space), objectives)
        origin = measured.min(axis=0)
        belief = cls(
            space=problem.space,
            process=process,
            costs=costs,
            losses=np.empty((0, len(objectives))),
            origin=origin,
            scale=reference - origin,
            evaluated=(),
        )
        believed = belief._denoised(points, measured)
        evaluated = tuple(point.configuration for point in points)
        belief = replace(belief, losses=(believed - origin) / belief.scale, evaluated=evaluated)
        return belief.fantasise([trial.configuration for trial in history if not trial.state.finished])

    def fantasise(self, pending: Sequence[Configuration]) -> "Belief":
        """The belief had `pending` come out at their expected losses ("kriging believer").

        Raises:
            SurrogateError: The kernel matrix became singular.
        """
        if not pending:
            return self
        means, _, costs = self._predict(pending)
        process = self.process.fantasise(self._featured(pending)) if self.process is not None else None
        rows = np.column_stack([means.mean(axis=0), costs])
        return replace(
            self,
            process=process,
            losses=np.vstack([self.losses, rows]),
            evaluated=(*self.evaluated, *pending),
        )

    @property
    def front(self) -> tuple[Configuration, ...]:
        """Configurations that are non-dominated as believed."""
        return tuple(self.evaluated[index] for index in np.flatnonzero(non_dominated(self.losses)))

    def improvement(self, *, certain: bool = False) -> "Improvement":
        """The acquisition of this belief.

        Args:
            certain: What configurations gain if they come out at their means.
        """
        region = FreeRegion.of(self.losses, np.ones(self.losses.shape[1]))
        return Improvement(belief=self, region=region, certain=certain)

    def _denoised(self, points: Sequence[FrontPoint], measured: Array) -> Array:
        if self.process is None:
            return measured
        mean, _ = self.process.posterior(self._featured([point.configuration for point in points]))
        return np.column_stack([mean, measured[:, 1:]])

    def _predict(self, configurations: Sequence[Configuration]) -> tuple[Array, Array, Array]:
        """Scaled: `[s, n]` means and deviations of the uncertain objective by each of s processes; `[n, k]` costs."""
        features = self._featured(configurations)
        missing = [index for index, one in enumerate(configurations) if one not in self._costs]
        if missing and self.costs:
            chosen = [configurations[index] for index in missing]
            columns = np.column_stack([cost.losses(chosen, features[missing]) for cost in self.costs])
            self._costs.update({one: row for one, row in zip(chosen, columns, strict=True)})
        rows = [self._costs[one] for one in configurations] if self.costs else []
        costs = np.array(rows).reshape(len(configurations), len(self.costs))
        if self.process is None:
            scaled = (costs - self.origin) / self.scale
            return scaled[None, :, 0], np.zeros((1, len(scaled))), scaled[:, 1:]
        means, deviations = self.process.posteriors(features)
        scaled_costs = (costs - self.origin[1:]) / self.scale[1:]
        return (means - self.origin[0]) / self.scale[0], deviations / self.scale[0], scaled_costs

    def _featured(self, configurations: Sequence[Configuration]) -> Array:
        for one in configurations:
            if one not in self._features:
                self._features[one] = self.space.features(one)
        return np.array([self._features[one] for one in configurations])


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """Expected hypervolume improvement over a belief, as a score of configurations."""

    belief: Belief
    region: FreeRegion
    certain: bool = False

    def __call__(self, configurations: Sequence[Configuration]) -> Array:
        """`[n]` expected gains; with nothing uncertain, cheaper ones win among those that gain nothing."""
        means, deviations, costs = self.belief._predict(configurations)
        if self.certain:
            means = means.mean(axis=0, keepdims=True)
            deviations = np.zeros_like(means)
        gains = self.region.averaged_improvement(means, deviations, costs=costs)
        return gains if self.belief.process is not None else gains - _TIE_BREAK * (means[0] + costs.sum(axis=1))


def ordered(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """`objectives` with the one to be modelled first: the task metric, else a learned cost, else as they are."""
    learned = [one for one in objectives if one.knowledge is Knowledge.LEARNED]
    metrics = [one for one in learned if one.name not in COSTS]
    first = (metrics or learned or list(objectives))[0]
    return (first, *(one for one in objectives if one is not first))


def _reaching(measured: Array, costs: Sequence[Cost], largest: Configuration | None, space: SearchSpace) -> Array:
    """`[t + 1, m]` measured losses, and a row of what `largest` will cost as far as that is known."""
    if largest is None or not costs:
        return measured
    features, row = space.features(largest)[None], measured.max(axis=0)
    for place, cost in enumerate(costs, start=len(row) - len(costs)):
        if not isinstance(cost, Learned):
            row[place] = cost.losses([largest], features)[0]
    return np.vstack([measured, row])


def _fitted(
    problem: SearchProblem, history: History, objective: Objective, sources: Sequence[SourceModel]
) -> Averaged | AtFullBudget | WarmProcess:
    found = outcomes(history, objective)
    if len(found) < MIN_OUTCOMES:
        raise SurrogateError(f"{len(found)} outcomes of {objective.name}, {MIN_OUTCOMES} are needed")
    if not sources and history.in_state(TrialState.PRUNED):
        return fit_rungs(problem.space, history, objective, seed=problem.seed)
    x = np.array([problem.space.features(one) for one in found.configurations])
    typical = problem.space.lengthscales
    cold = fit(x, found.losses, seed=problem.seed, typical=typical)
    return with_sources(cold, x, found.losses, sources, seed=problem.seed, typical=typical)
