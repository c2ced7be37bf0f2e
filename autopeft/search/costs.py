"""Costs of configurations that need no training to tell, or whose model is good enough to be taken at its word."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autopeft.objectives.objective import Knowledge, Objective
from autopeft.objectives.pareto import Array
from autopeft.objectives.residual import Residual
from autopeft.search.observations import outcomes
from autopeft.search.past_study import PastStudy
from autopeft.search.surrogate import Averaged, SurrogateError, fit
from autopeft.search.trial import History
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

_LOG = logging.getLogger(__name__)


class Cost(Protocol):
    """One objective as a function of the configuration."""

    def losses(self, configurations: Sequence[Configuration], features: Array) -> Array:
        """`[n]` losses; `features` `[n, f]` are those of the same configurations."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactParameters:
    """Trainable parameters, exact."""

    space: SearchSpace

    def losses(self, configurations: Sequence[Configuration], features: Array) -> Array:
        return np.array([float(self.space.parameters(one)) for one in configurations])


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A prediction of the space times the ratio that this study's measurements showed."""

    space: SearchSpace
    objective: Objective
    ratio: float

    @classmethod
    def of(cls, space: SearchSpace, objective: Objective, history: History) -> "Predicted":
        """With the median of measured over predicted among completed trials, 1.0 when there are none yet."""
        pairs = [
            (trial.final.value(objective.name), space.predicted(trial.configuration)[objective.name])
            for trial in history.completed
            if trial.final is not None
        ]
        return cls(space=space, objective=objective, ratio=Residual.of(pairs).ratio)

    def losses(self, configurations: Sequence[Configuration], features: Array) -> Array:
        values = [self.space.predicted(one)[self.objective.name] for one in configurations]
        return np.array([self.objective.to_loss(self.ratio * value) for value in values])


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A second surrogate's posterior mean, taken as if it were known (plug-in); of the logarithm where all is positive.

    Right for costs that vary smoothly and with little noise, such as seconds; its own uncertainty is ignored.
    """

    process: Averaged | None
    """None before there is anything to learn from: every configuration then costs `constant`."""
    constant: float
    logarithm: bool

    @classmethod
    def of(cls, space: SearchSpace, objective: Objective, history: History, *, seed: int) -> "Learned":
        found = outcomes(history, objective)
        rows = [index for index, measured in enumerate(found.observed) if measured]
        return cls.fitted(space, objective, [found.configurations[row] for row in rows], found.losses[rows], seed=seed)

    @classmethod
    def fitted(
        cls,
        space: SearchSpace,
        objective: Objective,
        configurations: Sequence[Configuration],
        losses: Array,
        *,
        seed: int,
    ) -> "Learned":
        """From `losses` `[n]` of n configurations, finite; n may be 0."""
        logarithm = bool(len(losses)) and bool((losses > 0).all())
        constant = float(np.median(losses)) if len(losses) else 1.0
        process: Averaged | None = None
        if len(losses) > 1:
            x = np.array([space.features(one) for one in configurations])
            try:
                process = fit(x, np.log(losses) if logarithm else losses, seed=seed)
            except SurrogateError as error:
                _LOG.warning("no surrogate for %s, taken as constant: %s", objective.name, error)
        return cls(process=process, constant=constant, logarithm=logarithm)

    def losses(self, configurations: Sequence[Configuration], features: Array) -> Array:
        if self.process is None:
            return np.full(len(configurations), self.constant)
        mean, _ = self.process.posterior(features)
        return np.exp(mean) if self.logarithm else mean


def cost_of(space: SearchSpace, objective: Objective, history: History, *, seed: int) -> Cost:
    """How the candidates' losses of `objective` are had: exactly, predicted, or learned from `history`.

    A predicted objective for which the space has no predictor is learned.
    """
    if objective.knowledge is Knowledge.EXACT:
        return ExactParameters(space=space)
    if len(history) and _foretold(space, objective, history.trials[0].configuration):
        return Predicted.of(space, objective, history)
    return Learned.of(space, objective, history, seed=seed)


def carried_cost(space: SearchSpace, objective: Objective, past: PastStudy, place: int, *, seed: int) -> Cost:
    """The same before any trial: known or predicted as ever, else learned from what column `place` of a past study's
    costs measured.
    """
    if objective.knowledge is Knowledge.EXACT:
        return ExactParameters(space=space)
    if _foretold(space, objective, past.configurations[0]):
        return Predicted(space=space, objective=objective, ratio=1.0)
    rows = np.flatnonzero(np.isfinite(past.costs[:, place]))
    there = [past.configurations[row] for row in rows]
    return Learned.fitted(space, objective, there, past.costs[rows, place], seed=seed)


def _foretold(space: SearchSpace, objective: Objective, configuration: Configuration) -> bool:
    return objective.knowledge is Knowledge.PREDICTED and objective.name in space.predicted(configuration)
