"""The Bayesian engine as a sampler for anyone's Optuna study.

    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=AutoPeftSampler(seed=0, known={1: lambda parameters: 2 * 768 * parameters["rank"]}),
    )

What sets it apart from Optuna's own samplers: objectives that can be computed are not modelled but computed, and the
expected hypervolume improvement is then exact. Failed trials are learned from.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, final
from zlib import crc32

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.errors import SpecError
from autopeft.objectives.objective import Direction
from autopeft.objectives.pareto import Array, non_dominated
from autopeft.search.acquisition import FreeRegion
from autopeft.search.candidates import Score, best_candidate
from autopeft.search.feasibility import Feasibility, feasible
from autopeft.search.parameter_belief import Known, ParameterBelief
from autopeft.search.parameter_space import Admits, ParameterSpace, Point
from autopeft.search.surrogate import SurrogateError, one_thread

SPREADS = (0.1, 0.05, 0.02, 0.01, 0.005)
"""Deviations, as shares of a real parameter's range, of the draws around a candidate."""

AROUND = 64
"""Draws of each."""

_DIRECTIONS = {StudyDirection.MINIMIZE: Direction.MINIMIZE, StudyDirection.MAXIMIZE: Direction.MAXIMIZE}


@final
class AutoPeftSampler(BaseSampler):
    """Gaussian processes for what only an evaluation tells, known objectives as they are, exact expected improvement.

    Parameters that all completed trials have in common are chosen by the model; others (conditional ones) are drawn
    uniformly, as Optuna's GPSampler does. Trials that run count as if they had come out as expected. A suggestion
    depends on the study's trials and the seed alone.

    Constraints that trials set (`optuna.Trial.set_constraint`) are learned from every trial that set them, and so is
    failing: what is proposed has the largest expected improvement times the chance that it keeps the constraints and
    does not fail. Constraints that can be computed beforehand belong in `admits` instead. Nothing that failed, was
    pruned or completed is proposed again. A pruned trial of a study with one objective counts at its last reported
    value and what completed trials gained from that step to their end on average.

    Args:
        seed: None draws one.
        n_startup_trials: Completed trials before the model chooses; uniform draws until then.
        known: Objectives that can be computed, by their place in `directions`, each a function of the parameters
            that all trials have in common, in the objective's own unit and direction.
        admits: Whether a set of parameters may be proposed; one that may not never is (after the startup).

    Raises:
        SpecError: `n_startup_trials` is below 1; a place of `known` that the study does not have, at the first trial.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        n_startup_trials: int = 10,
        known: Mapping[int, Known] | None = None,
        admits: Admits | None = None,
    ) -> None:
        if n_startup_trials < 1:
            raise SpecError(f"n_startup_trials: got {n_startup_trials}; 1 or more", hint="10 suits most")
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._startup, self._known, self._admits = n_startup_trials, dict(known or {}), admits
        self._common = IntersectionSearchSpace()

    def reseed_rng(self) -> None:
        self._seed = int(np.random.SeedSequence().generate_state(1)[0])

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._check(study)
        common = self._common.calculate(study)
        return {name: distribution for name, distribution in common.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        trials = study.get_trials(deepcopy=False)
        completed = [one for one in trials if one.state is TrialState.COMPLETE and np.isfinite(one.values).all()]
        if not search_space or len(completed) < self._startup:
            return {}
        space = ParameterSpace(search_space, admits=self._admits)
        others = [one for one in trials if one.number != trial.number and _has(one, search_space)]
        rng = np.random.default_rng([self._seed, trial.number])
        try:
            with one_thread():
                found = self._best(study, space, completed, others, rng=rng)
        except SurrogateError:
            return {}
        return {} if found is None else space.parameters(found)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        # Optuna's RandomSampler(seed) would draw the first trials' values again in a study that is resumed.
        own = np.random.SeedSequence([self._seed, trial.number, crc32(param_name.encode())])
        drawn = RandomSampler(seed=int(own.generate_state(1)[0]))
        return drawn.sample_independent(study, trial, param_name, param_distribution)

    def _check(self, study: Study) -> None:
        wrong = [place for place in self._known if not 0 <= place < len(study.directions)]
        if wrong:
            raise SpecError(
                f"known: got objective {wrong[0]}; the study has {len(study.directions)}, counted from 0",
                hint="name each by its place in the study's directions",
            )

    def _best(
        self,
        study: Study,
        space: ParameterSpace,
        completed: Sequence[FrozenTrial],
        others: Sequence[FrozenTrial],
        *,
        rng: np.random.Generator,
    ) -> Point | None:
        """The point of largest expected improvement times the chance that it is feasible.

        The front is that of the trials that kept the constraints and of running ones that are likely to; before there
        is one, only the chance counts.
        """
        pending = [space.point(one.params) for one in others if one.state is TrialState.RUNNING]
        features = space.features(pending)
        feasibility = Feasibility.of(space, others, seed=self._seed)
        belief = ParameterBelief.of(
            space,
            [space.point(one.params) for one in completed],
            np.array([one.values for one in completed]),
            known=self._known,
            directions=[_DIRECTIONS[direction] for direction in study.directions],
            seed=self._seed,
            stopped={} if self._known else _stopped(space, completed, others),
        ).fantasise(pending)
        kept = np.array([*map(feasible, completed), *(feasibility.chance(features) >= 0.5)], dtype=np.bool_)
        losses, feasibility = belief.losses[kept], feasibility.fantasise(features)
        region = FreeRegion.of(losses, np.ones(losses.shape[1]))
        parents = [belief.points[index] for index in np.flatnonzero(kept)[non_dominated(losses)]]

        def score(candidates: Sequence[Point]) -> Array:
            chance = feasibility.chance(space.features(candidates))
            if not kept.any():
                return chance
            means, deviations, costs = belief.predict(candidates)
            return chance * region.averaged_improvement(means, deviations, costs=costs)

        tried = {space.point(one.params) for one in others}
        found = best_candidate(space, score, parents=parents, excluded=tried, rng=rng)
        return None if found is None else _refined(space, score, found, excluded=tried, rng=rng)


def _refined(
    space: ParameterSpace, score: Score[Point], found: Point, *, excluded: AbstractSet[Point], rng: np.random.Generator
) -> Point:
    """The best of `found` and of draws around the best so far, which close in: a local search's strides are coarse."""
    best, value = found, float(score([found])[0])
    for spread in SPREADS:
        near = [one for one in space.around(best, rng, AROUND, spread=spread) if one not in excluded]
        values = score(near) if near else np.empty(0)
        if len(near) and values.max() > value:
            best, value = near[int(np.argmax(values))], float(values.max())
    return best


def _has(trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]) -> bool:
    """Whether a trial has all parameters of `search_space`, with the same ranges."""
    return all(trial.distributions.get(name) == one for name, one in search_space.items())


def _stopped(
    space: ParameterSpace, completed: Sequence[FrozenTrial], others: Sequence[FrozenTrial]
) -> dict[Point, float]:
    """Pruned trials that reported, and the values they are expected to have ended at (as in `observations.outcomes`).

    Only studies with one objective can report. One whose last step no completed trial reported tells nothing.
    """
    found: dict[Point, float] = {}
    for one in others:
        if one.state is TrialState.PRUNED and one.intermediate_values:
            step, last = max(one.intermediate_values.items())
            ends = [(end.values[0], end.intermediate_values.get(step, np.nan)) for end in completed]
            gains = [end - then for end, then in ends if np.isfinite(then)]
            if gains and np.isfinite(last):
                found[space.point(one.params)] = last + float(np.mean(gains))
    return found
