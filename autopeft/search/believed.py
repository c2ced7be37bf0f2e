"""What a surrogate believes of trials that were run: their scores without the luck of one run."""

from collections.abc import Mapping, Sequence

import numpy as np

from autopeft.objectives.objective import Objective
from autopeft.search.observations import outcomes
from autopeft.search.surrogate import SurrogateError, fit, one_thread
from autopeft.search.trial import History, Trial
from autopeft.spaces.space import SearchSpace

MIN_OUTCOMES = 4
"""Outcomes below which nothing is believed but what was seen."""

Beliefs = Mapping[int, tuple[float, float]]
"""By trial number: mean and standard deviation of an objective without noise, in its own unit."""


def believe(space: SearchSpace, history: History, objective: Objective, *, noise: float = 0.0, seed: int) -> Beliefs:
    """The posterior of `objective` at every completed trial; empty where no surrogate can be fitted.

    The best of many noisy scores is above its own mean; a posterior mean is drawn towards those of its neighbours by
    as much as the noise warrants, and so is what may be compared.

    Args:
        space: Of the trials.
        history: The trials.
        objective: What is believed of.
        noise: Variance between runs of one configuration, where it was measured: the surrogate's own estimate is raised
            to it. From a few trials that estimate is often near zero, and would then believe what it saw.
        seed: Of the draws of the surrogate's hyper-parameters.
    """
    found = outcomes(history, objective)
    trials = [trial for trial in history.completed if trial.configuration in set(found.configurations)]
    if len(found) < MIN_OUTCOMES or not trials:
        return {}
    try:
        with one_thread():
            x = np.array([space.features(one) for one in found.configurations])
            process = fit(x, found.losses, seed=seed, typical=space.lengthscales, noise=noise)
            mean, deviation = process.posterior(np.array([space.features(trial.configuration) for trial in trials]))
    except SurrogateError:
        return {}
    return {
        trial.number: (objective.from_loss(float(loss)), float(spread))
        for trial, loss, spread in zip(trials, mean, deviation, strict=True)
    }


def best_believed(trials: Sequence[Trial], beliefs: Beliefs, objective: Objective) -> Trial | None:
    """The completed trial that is believed best, by what was seen where nothing is believed; ties to the earliest."""
    scored = [(trial, _seen(trial, objective)) for trial in trials]
    known = [(trial, value) for trial, value in scored if value is not None]
    if not known:
        return None
    if beliefs:
        known = [(trial, beliefs[trial.number][0]) for trial, _ in known if trial.number in beliefs] or known
    return min(known, key=lambda row: (objective.to_loss(row[1]), row[0].number))[0]


def _seen(trial: Trial, objective: Objective) -> float | None:
    try:
        return None if trial.final is None else trial.final.value(objective.name)
    except KeyError:
        return None


def updated(belief: tuple[float, float] | None, scores: Sequence[float], *, noise: float) -> tuple[float, float]:
    """Mean and deviation after `scores` of further runs, each with variance `noise` around the true score.

    Two independent normal sources, weighed by precision: what the search believed, and the mean of the new runs. A
    search saw a configuration once, so its belief counts for one run at most. With no belief (None), or no noise, the
    new runs decide.
    """
    mean, variance = float(np.mean(scores)), noise / len(scores)
    if belief is None or variance == 0.0:
        return mean, variance**0.5
    prior, deviation = belief
    own = max(deviation**2, noise)
    weight = own / (own + variance)
    return prior + weight * (mean - prior), (weight * variance) ** 0.5
