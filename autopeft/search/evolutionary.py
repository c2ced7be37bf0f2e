"""NSGA-II, Optuna's, as a pure function of the history."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, final

import numpy as np

from autopeft.search.candidates import decoded
from autopeft.search.observations import front_points
from autopeft.search.optuna_log import quiet_optuna
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.trial import History
from autopeft.search.unseen import draw_unseen
from autopeft.spaces.configuration import Configuration

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import NSGAIISampler

MAX_CHILDREN = 64
"""Children that one proposal may reject as invalid or seen before it is drawn at random."""

_GENERATION = "NSGAIISampler:generation"


def population_size(n_trials: int) -> int:
    """A fifth of the budget, so that there are five generations; at least 4, at most Optuna's 50."""
    return max(4, min(50, n_trials // 5))


@final
class EvolutionarySearcher(AbstractSearcher):
    """Each call rebuilds an in-memory Optuna study from the completed trials and lets its sampler breed.

    Genes are the dimensions' values as indices of their levels, an inactive dimension at its default, so that
    crossover works on conditional dimensions too. Completed trials form generations by number. Invalid and repeated
    children are bred again.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        """Children of the latest generation, then uniform draws; see `AbstractSearcher.ask`."""
        rng = np.random.default_rng([self._problem.seed, len(history)])
        seen = set(history.ids)
        chosen: list[Configuration] = []
        if len(history.completed) >= population_size(self._problem.n_trials):
            for child in self._children(history, n, seed=int(rng.integers(2**31))):
                if len(chosen) < n and child.id not in seen:
                    seen.add(child.id)
                    chosen.append(child)
        return [*chosen, *draw_unseen(self._problem.space, rng, n - len(chosen), seen=seen)]

    def _children(self, history: History, n: int, *, seed: int) -> Iterator[Configuration]:
        """Valid children, possibly repeated or seen, until `MAX_CHILDREN` for each of `n` were bred."""
        from optuna.samplers import NSGAIISampler

        sampler = NSGAIISampler(population_size=population_size(self._problem.n_trials), seed=seed)
        genes = self._genes()
        with quiet_optuna():
            study = self._study(history, sampler, genes)
            for _ in range(MAX_CHILDREN * n):
                child = self._decoded(study.ask(genes).params)
                if child is not None:
                    yield child

    def _study(self, history: History, sampler: "NSGAIISampler", genes: "dict[str, BaseDistribution]") -> "Study":
        import optuna

        objectives = self._problem.objectives
        size = population_size(self._problem.n_trials)
        study = optuna.create_study(
            directions=[optuna.study.StudyDirection.MINIMIZE] * len(objectives), sampler=sampler
        )
        for place, point in enumerate(front_points(history, objectives)):
            study.add_trial(
                optuna.trial.create_trial(
                    params=self._encoded(point.configuration, genes),
                    distributions=genes,
                    values=[one.to_loss(point.values[one.name]) for one in objectives],
                    system_attrs={_GENERATION: place // size},
                )
            )
        return study

    def _genes(self) -> "dict[str, BaseDistribution]":
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        genes: dict[str, BaseDistribution] = {}
        for dimension in self._problem.space.dimensions:
            if dimension.levels is None:
                genes[dimension.name] = FloatDistribution(0.0, 1.0)
            elif dimension.domain.ordinal:
                genes[dimension.name] = IntDistribution(0, len(dimension.levels) - 1)
            else:
                genes[dimension.name] = CategoricalDistribution(tuple(range(len(dimension.levels))))
        return genes

    def _encoded(self, configuration: Configuration, genes: "dict[str, BaseDistribution]") -> dict[str, float]:
        space = self._problem.space
        values: dict[str, float] = {}
        for dimension, unit in zip(space.dimensions, space.encode(configuration), strict=True):
            levels = dimension.levels
            index = float(unit) if levels is None else levels.index(dimension.domain.from_unit(float(unit)))
            values[dimension.name] = index
        return values

    def _decoded(self, params: dict[str, float]) -> Configuration | None:
        space = self._problem.space
        units: list[float] = []
        for dimension in space.dimensions:
            gene = params[dimension.name]
            units.append(gene if dimension.levels is None else dimension.domain.to_unit(dimension.levels[int(gene)]))
        return decoded(space, np.array(units))
