"""A surrogate that learns from every rung: how far a trial was trained is one more input, and it is asked at the end.

What trials gain on average from a rung to their end is added to what was measured there, so that the input has only to
explain where rung and end disagree. If they do not, its length-scale is long and a trial at a low rung tells as much as
a whole one. Where a rung misleads, processes that know whole trials alone predict these better, and take over.

Source: Swersky, Snoek and Adams 2013, "Multi-task Bayesian optimization"; Klein et al. 2017 (FABOLAS) for the fidelity
as an input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from autopeft.objectives.objective import Objective
from autopeft.objectives.pareto import Array
from autopeft.search.observations import expected_gain, loss_at, outcomes
from autopeft.search.ranking import chances_of_best_order, left_out
from autopeft.search.surrogate import Averaged, fit, mixed
from autopeft.search.trial import History, TrialState
from autopeft.search.warm_start import apportioned, some
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

MIN_WHOLE = 4
"""Whole trials below which nothing is known of how well a rung tells the end."""

_LEVEL_SCALE = 2.0
"""Length-scale to expect of how far a trial was trained, which is in [0, 1]."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AtFullBudget:
    """Processes over features and fidelity, asked for whole trials, and others that know whole trials alone; all count
    alike. Stands where an `Averaged` would.
    """

    rungs: Averaged | None
    """None where none of them is left, as below."""
    alone: Averaged | None

    def posteriors(self, x: Array) -> tuple[Array, Array]:
        """As `Averaged.posteriors`, `x` `[q, d]` being the features alone."""
        found = [self.rungs.posteriors(_whole(x))] if self.rungs else []
        found += [self.alone.posteriors(x)] if self.alone else []
        return np.vstack([means for means, _ in found]), np.vstack([deviations for _, deviations in found])

    def posterior(self, x: Array) -> tuple[Array, Array]:
        """As `Averaged.posterior`."""
        return mixed(*self.posteriors(x))

    def fantasise(self, x: Array) -> "AtFullBudget":
        """As `Averaged.fantasise`: each of `x` had been trained to its end."""
        return AtFullBudget(
            rungs=self.rungs.fantasise(_whole(x)) if self.rungs else None,
            alone=self.alone.fantasise(x) if self.alone else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RungOutcomes:
    """Losses of one objective at every rung, brought to the end of the training."""

    configurations: tuple[Configuration, ...]
    levels: Array
    """`[n]` how far each was trained: 0 after one epoch, 1 at the end, logarithmic in epochs."""
    losses: Array
    """`[n]`."""


def rung_outcomes(history: History, objective: Objective) -> RungOutcomes:
    """`outcomes`, and beside them what completed and running trials measured at the epochs at which others stopped."""
    whole = max((trial.measurements[-1].epoch for trial in history.completed if trial.measurements), default=1)
    rungs = sorted(
        {trial.measurements[-1].epoch for trial in history.in_state(TrialState.PRUNED) if trial.measurements}
    )
    reached = {trial.configuration: trial.measurements[-1].epoch for trial in history if trial.measurements}
    found = outcomes(history, objective)
    ends = {trial.configuration for trial in history if trial.state in (TrialState.COMPLETED, TrialState.FAILED)}
    epochs = [whole if one in ends else reached[one] for one in found.configurations]
    rows = [
        (trial.configuration, rung, loss - expected_gain(history, objective, rung))
        for rung in rungs
        for trial in history
        if trial.state is not TrialState.FAILED and _passed(trial.state, reached.get(trial.configuration, 0), rung)
        if (loss := loss_at(trial, objective, rung)) is not None
    ]
    return RungOutcomes(
        configurations=(*found.configurations, *(one for one, _, _ in rows)),
        levels=_levels([*epochs, *(rung for _, rung, _ in rows)], whole),
        losses=np.concatenate([found.losses, np.minimum([loss for *_, loss in rows], _worst(found.losses))]),
    )


def fit_rungs(space: SearchSpace, history: History, objective: Objective, *, seed: int) -> AtFullBudget:
    """The posterior of whole trials' losses after what was measured at all rungs.

    Beside it stand processes of whole trials alone: each predicts every whole trial from the others, and the one that
    orders these better has the larger share (`ranking.chances_of_best_order`).

    Raises:
        SurrogateError: As `fit`.
    """
    found = rung_outcomes(history, objective)
    x = np.array([space.features(one) for one in found.configurations])
    typical = space.lengthscales
    rungs = fit(np.column_stack([x, found.levels]), found.losses, seed=seed, typical=np.append(typical, _LEVEL_SCALE))
    whole = np.flatnonzero(found.levels == 1.0)
    if len(whole) < MIN_WHOLE:
        return AtFullBudget(rungs=rungs, alone=None)
    alone = fit(x[whole], found.losses[whole], seed=seed, typical=typical)
    means, deviations = left_out(rungs.each)
    parts = [(means[:, whole], deviations[:, whole]), left_out(alone.each)]
    n_rungs, n_alone = apportioned(chances_of_best_order(parts, found.losses[whole], seed=seed), len(rungs.each))
    return AtFullBudget(
        rungs=some(rungs, n_rungs) if n_rungs else None, alone=some(alone, n_alone) if n_alone else None
    )


def _passed(state: TrialState, reached: int, rung: int) -> bool:
    """Whether a trial has a measurement at `rung` that is not its outcome already."""
    return reached > rung or (state is TrialState.RUNNING and reached == rung)


def _levels(epochs: Sequence[int], whole: int) -> Array:
    return np.array([math.log(epoch) / math.log(whole) if whole > 1 else 1.0 for epoch in epochs])


def _worst(losses: Array) -> float:
    """Losses above that of any outcome, which accidents were cut to, tell nothing more."""
    return float(losses.max()) if len(losses) else np.inf


def _whole(x: Array) -> Array:
    return np.column_stack([x, np.ones(len(x))])
