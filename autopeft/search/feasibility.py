"""How likely parameters of an Optuna study are to keep its constraints and not to fail, learned from its trials."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from autopeft.objectives.pareto import Array
from autopeft.search.parameter_space import ParameterSpace
from autopeft.search.surrogate import Averaged, fit

LEARNED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
"""States of trials that say whether parameters are feasible."""

LEAST = 0.01
"""The smallest chance of not failing: an accident must not close a region for good."""

_CHANCE = 0.5
"""Share, at least, of what failing varies by that is laid to chance. Without it, failures that fall anywhere become
narrow forbidden regions.
"""

_OUTLIER = 10.0
"""Constraint values further from 0 than this many medians say no more than that."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Feasibility:
    """Processes for the values of constraints and for failing, independent of each other as in Gardner et al. 2014,
    "Bayesian Optimization with Inequality Constraints".
    """

    constraints: tuple[Averaged, ...]
    """One for each constraint whose values trials have set; it is kept where the value is 0 or less."""
    failing: Averaged | None
    """1 where trials failed, 0 where they did not; None where none has, or all have."""

    @classmethod
    def of(cls, space: ParameterSpace, trials: Sequence[FrozenTrial], *, seed: int) -> "Feasibility":
        """What finished `trials` say.

        A constraint is learned from all trials that set it, pruned and failed ones too. A completed trial with a value
        that is not finite counts as failed.

        Args:
            space: Of the parameters.
            trials: With all of them, in any state.
            seed: Of the draws of hyper-parameters.

        Raises:
            SurrogateError: A process could not be fitted.
        """
        known = [one for one in trials if one.state in LEARNED]
        x = space.features([space.point(one.params) for one in known])
        names = dict.fromkeys(name for one in known for name in one.constraints)
        processes = [_of_constraint(x, [one.constraints.get(name) for one in known], seed=seed) for name in names]
        failed = np.array([float(_failed(one)) for one in known])
        mixed = 0 < failed.sum() < len(failed)
        return cls(
            constraints=tuple(process for process in processes if process is not None),
            failing=fit(x, failed, seed=seed, noise=_CHANCE * float(failed.var())) if mixed else None,
        )

    def fantasise(self, x: Array) -> "Feasibility":
        """The same had trials at `x` `[q, d]` come out as expected.

        Raises:
            SurrogateError: A kernel matrix became singular.
        """
        if not len(x):
            return self
        failing = None if self.failing is None else self.failing.fantasise(x)
        return replace(self, constraints=tuple(one.fantasise(x) for one in self.constraints), failing=failing)

    def chance(self, x: Array) -> Array:
        """`[n]` chances in [0, 1] that features `x` `[n, d]` keep every constraint and do not fail."""
        chances = np.ones(len(x))
        if not len(x):
            return chances
        for process in self.constraints:
            means, deviations = process.posteriors(x)
            chances *= ndtr(-means / np.maximum(deviations, 1e-300)).mean(axis=0)
        if self.failing is not None:
            chances *= np.clip(1.0 - self.failing.posterior(x)[0], LEAST, 1.0)
        return chances


def feasible(trial: FrozenTrial) -> bool:
    """Whether `trial` kept every constraint that it set, as Optuna defines it."""
    return all(value <= 0 for value in trial.constraints.values())


def _failed(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL or (
        trial.state is TrialState.COMPLETE and not np.isfinite(trial.values).all()
    )


def _of_constraint(x: Array, values: Sequence[float | None], *, seed: int) -> Averaged | None:
    """A process on the values of one constraint; None where fewer than two trials set it."""
    rows = [index for index, value in enumerate(values) if value is not None]
    if len(rows) < 2:
        return None
    found = np.array([values[index] for index in rows], dtype=np.float64)
    sizes = np.abs(found[np.isfinite(found) & (found != 0)])
    limit = _OUTLIER * float(np.median(sizes)) if len(sizes) else 1.0
    return fit(x[rows], np.clip(found, -limit, limit), seed=seed)
