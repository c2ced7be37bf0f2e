"""Variances of a few seeds each, drawn towards one another by as much as they agree.

Three seeds tell little of how much a configuration varies between them. If all vary alike their variances can be
pooled, but one that fails from a seed would then blur all others. So what they have in common is a prior, whose weight
is estimated from how far the variances are apart: pooled where they are alike, each on its own where they are not. What
is unsteadier than the others is not drawn towards them; its variance is its own.

Source: Smyth 2004, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments", section 6.2, without the last rule, which is ours: there 95 % intervals of an unsteady minority would hold
too seldom.
"""

import numpy as np

from autopeft.objectives.pareto import Array

_LEAST = 1e-5
"""Of the mean variance: what a variance of 0 (scores are counts) is taken for in estimating the prior."""
_STEPS = 50


def moderated(variances: Array, freedom: float, *, most: float, correlation: float = 0.0) -> tuple[Array, Array]:
    """Variances after they were drawn towards their prior, and the degrees of freedom of each.

    Args:
        variances: `[g]`, each of equally many scores.
        freedom: Degrees of freedom of each, above 0.
        most: Degrees of freedom of all scores together; no variance has more.
        correlation: Mean correlation of two of them if all vary alike, in [0, 1).

    Returns:
        `[g]` variances and `[g]` degrees of freedom, at least `freedom`.
    """
    weight, prior = _prior(variances, freedom, correlation)
    weight = min(weight, most - freedom)
    if weight <= 0:
        return variances, np.full(len(variances), freedom)
    drawn = (weight * prior + freedom * variances) / (weight + freedom)
    unsteady = variances > prior
    return np.where(unsteady, variances, drawn), np.where(unsteady, freedom, weight + freedom)


def _prior(variances: Array, freedom: float, correlation: float) -> tuple[float, float]:
    """Degrees of freedom (infinite where the variances are as alike as chance makes them) and variance of the prior."""
    from scipy.special import digamma, polygamma

    if len(variances) < 2 or not (variances > 0).any():
        return 0.0, 0.0
    logs = np.log(np.maximum(variances, _LEAST * variances.mean())) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var(ddof=1) / (1.0 - correlation) - polygamma(1, freedom / 2))
    if excess <= 0:
        return np.inf, float(np.exp(logs.mean()))
    half = _trigamma_inverse(excess)
    return 2 * half, float(np.exp(logs.mean() + digamma(half) - np.log(half)))


def _trigamma_inverse(value: float) -> float:
    """Where the trigamma function is `value` > 0, by Newton's method from below (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    at = 0.5 + 1.0 / value
    for _ in range(_STEPS):
        found = float(polygamma(1, at))
        step = found * (1.0 - found / value) / float(polygamma(2, at))
        at += step
        if abs(step) < 1e-8 * at:
            break
    return at
