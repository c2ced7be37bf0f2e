"""How well processes order what was observed, each observation predicted from the others."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve

from autopeft.objectives.pareto import Array
from autopeft.search.surrogate import GaussianProcess

DRAWS = 240
"""Of the leave-one-out predictions."""
COMPARED = 100
"""Observations, at most, whose order is looked at, evenly spread; pairs grow with the square."""

LeftOut = tuple[Array, Array]
"""`[s, n]` means and `[s, n]` deviations of each of n observations given the others, by each of s processes."""


def left_out(processes: Sequence[GaussianProcess]) -> LeftOut:
    """Every observation of `processes` as predicted from the others, in the outcome's unit, noise included.

    Source: Rasmussen and Williams 2006, equations 5.10 to 5.12; the hyper-parameters stay those of all. Cost: O(s n^3).
    """
    means, deviations = zip(*(_left_out(one) for one in processes), strict=True)
    return np.array(means), np.array(deviations)


def _left_out(process: GaussianProcess) -> tuple[Array, Array]:
    inverse = np.diag(cho_solve((process.factor, True), np.eye(len(process.z))))
    mean = process.z - process.weights / inverse
    return process.location + process.scale * mean, process.scale / np.sqrt(inverse)


def chances_of_best_order(parts: Sequence[LeftOut], y: Array, *, seed: int) -> Array:
    """`[k]` how often draws of each of k `parts` order the outcomes `y` `[n]` with the fewest mistakes; sums to 1.

    A mistake is a pair that is predicted the wrong way round; parts with equally many share the draw.

    Source: Feurer, Letham and Bakshy 2018, "Scalable Meta-Learning for Bayesian Optimization using Ranking-Weighted
    Gaussian Process Ensembles", equation 4 and section 4.1.
    """
    rng = np.random.default_rng([seed, 0xA4C])
    rows = np.unique(np.linspace(0, len(y) - 1, COMPARED).round().astype(int))
    mistakes = np.array([_mistakes(means[:, rows], deviations[:, rows], y[rows], rng) for means, deviations in parts])
    best = mistakes == mistakes.min(axis=0)
    return (best / best.sum(axis=0)).mean(axis=1)


def _mistakes(means: Array, deviations: Array, y: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """`[DRAWS]` pairs that a draw has the wrong way round."""
    chosen = np.arange(DRAWS) % len(means)
    drawn = means[chosen] + deviations[chosen] * rng.standard_normal((DRAWS, len(y)))
    first, second = np.triu_indices(len(y), 1)
    told = y[first] != y[second]
    first, second = first[told], second[told]
    return ((drawn[:, first] < drawn[:, second]) != (y[first] < y[second])).sum(axis=1)


def agreement(scores: Array, y: Array) -> float:
    """Kendall's tau-a of `scores` and `y` `[n]`, in [-1, 1]; 0 where there is no pair to compare."""
    first, second = np.triu_indices(len(y), 1)
    if not len(first):
        return 0.0
    return float((np.sign(scores[first] - scores[second]) * np.sign(y[first] - y[second])).mean())
