"""Optuna's own samplers as search engines, each as a pure function of the history."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from autopeft.search.candidates import decoded
from autopeft.search.observations import front_points
from autopeft.search.optuna_log import quiet_optuna
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.trial import History, TrialState
from autopeft.search.unseen import draw_unseen
from autopeft.spaces.configuration import Configuration

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

STARTUP = 10
"""Completed trials before TPE and GP do anything but draw; Optuna's own default."""

_GENERATION = "NSGAIISampler:generation"


def population_size(n_trials: int) -> int:
    """A fifth of the budget, so that there are five generations; at least 4, at most Optuna's 50."""
    return max(4, min(50, n_trials // 5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One of Optuna's samplers and what it needs here."""

    make: Callable[[int, int], "BaseSampler"]
    """A sampler of (seed, trials of the study)."""
    starts_at: Callable[[int], int]
    """Completed trials that it starts from, of the study's number of trials; draws are uniform before."""
    attempts: int
    """Proposals, for each one asked for, that may be invalid or seen before the draw is uniform."""


def _nsga2(seed: int, n_trials: int) -> "BaseSampler":
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(population_size=population_size(n_trials), seed=seed)


def _tpe(seed: int, n_trials: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=STARTUP)


def _gp(seed: int, n_trials: int) -> "BaseSampler":
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=STARTUP)


NSGA2 = Kind(make=_nsga2, starts_at=population_size, attempts=64)
TPE = Kind(make=_tpe, starts_at=lambda _: STARTUP, attempts=64)
GP = Kind(make=_gp, starts_at=lambda _: STARTUP, attempts=3)


@final
class OptunaSearcher(AbstractSearcher):
    """Each call rebuilds an in-memory Optuna study from the history and lets one of Optuna's samplers propose.

    Genes are the dimensions' values as indices of their levels, an inactive dimension at its default, so that
    conditional dimensions take part for samplers that know only parameters common to all trials. Completed trials form
    NSGA-II's generations by number; running ones are Optuna trials that run, which TPE and GP take into account.
    Invalid and repeated proposals are made again.
    """

    def __init__(self, problem: SearchProblem, kind: Kind) -> None:
        self._problem, self._kind = problem, kind

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        """The sampler's proposals, then uniform draws; see `AbstractSearcher.ask`."""
        rng = np.random.default_rng([self._problem.seed, len(history)])
        seen = set(history.ids)
        chosen: list[Configuration] = []
        if n > 0 and len(history.completed) >= self._kind.starts_at(self._problem.n_trials):
            for proposed in self._proposals(history, n, seed=int(rng.integers(2**31))):
                if len(chosen) < n and proposed.id not in seen:
                    seen.add(proposed.id)
                    chosen.append(proposed)
        return [*chosen, *draw_unseen(self._problem.space, rng, n - len(chosen), seen=seen)]

    def _proposals(self, history: History, n: int, *, seed: int) -> Iterator[Configuration]:
        """Valid configurations, possibly repeated or seen; at most `attempts` tries for each of `n`."""
        genes = self._genes()
        found: set[str] = set(history.ids)
        with quiet_optuna():
            study = self._study(history, self._kind.make(seed, self._problem.n_trials), genes)
            for _ in range(self._kind.attempts * n):
                # A trial that is never told runs on: TPE and GP keep away from it, be it a proposal or an invalid one.
                proposed = self._decoded(study.ask(genes).params)
                if proposed is None or proposed.id in found:
                    continue
                found.add(proposed.id)
                yield proposed
                if len(found) >= len(history.ids) + n:
                    return

    def _study(self, history: History, sampler: "BaseSampler", genes: "dict[str, BaseDistribution]") -> "Study":
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
        for trial in history.in_state(TrialState.RUNNING):
            study.add_trial(
                optuna.trial.create_trial(
                    params=self._encoded(trial.configuration, genes),
                    distributions=genes,
                    state=optuna.trial.TrialState.RUNNING,
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
