"""Draws of a process's hyper-parameters from their posterior, by Hamiltonian Monte Carlo.

Few observations leave the hyper-parameters open, and the likeliest ones then are too sure of themselves: their
intervals are too narrow. What is believed is the average over draws (benchmarks/surrogate.py compares the two).
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.linalg import LinAlgError

from autopeft.objectives.pareto import Array
from autopeft.search.hyperparameters import Density, Hyperparameters, Prior, likeliest

PRIOR = Prior(lengthscales=(float(np.log(1.2)), 1.2), noise=(-5.0, 1.0))
"""That of the draws. The prior made to be maximised has its mode where length-scales should be, but half its mass
beyond four times the root of the dimension, where every function is nearly flat and its shape is taken for noise."""

OF_ANYTHING = Prior(lengthscales=PRIOR.lengthscales, noise=(-7.0, 2.0))
"""That where not even this is known, whether outcomes are noisy: half of it is below a thousandth of their variance."""

OF_TRAININGS = Prior(lengthscales=PRIOR.lengthscales, noise=(-3.0, 1.5))
"""That of the draws where typical length-scales are given, as a search space does: outcomes then are those of
trainings, where luck is larger, and from task to task more different."""

TUNED_ON = 100
"""Observations, at most, on which a chain finds its step and its typical set: a density costs O(t^3)."""
LEAPFROG_STEPS = 8
_BURN_IN = 30
_BURN_IN_ON_ALL = 6
_ACCEPTANCE = 0.8
_JITTER = 0.3


def draws(
    x: Array,
    z: Array,
    *,
    n: int,
    thinning: int,
    seed: int,
    typical: Array | None = None,
    noise: float = 0.0,
    prior: Prior | None = None,
) -> tuple[Hyperparameters, ...]:
    """`n` draws from the posterior of the hyper-parameters; deterministic in the seed.

    A chain starts from the likeliest ones. Its step is tuned to an acceptance of 0.8 by stochastic approximation and
    held while draws are taken. Beyond `TUNED_ON` observations both are found on as many of them, evenly spread, and
    the step shrinks as the posterior narrows, with the root of their number.

    Args:
        x: `[t, d]` inputs.
        z: `[t]` standardised outcomes.
        n: Draws.
        thinning: Transitions from one draw to the next.
        seed: Of the chain.
        typical: As of `Density`.
        noise: Noise variance, standardised like `z`, that none of the draws is below.
        prior: None for `PRIOR`, or with `typical` length-scales `OF_TRAININGS`.

    Raises:
        LinAlgError: No start has a finite density.

    Source: Neal 2011, "MCMC using Hamiltonian dynamics". Cost: 8 densities a transition.
    """
    rng, few = np.random.default_rng([seed, 0x4A3C]), spread(len(x), TUNED_ON)
    prior = prior or (PRIOR if typical is None else OF_TRAININGS)
    chain = _Chain(
        Density(x[few], z[few], prior=prior, typical=typical, least_noise=noise),
        at=likeliest(x[few], z[few], typical=typical, least_noise=noise).vector,
        step=0.1,
    )
    for count in range(_BURN_IN):
        chain.step *= float(np.exp((chain.transition(rng) - _ACCEPTANCE) / (1 + count) ** 0.6))
    if len(few) < len(x):
        whole = Density(x, z, prior=prior, typical=typical, least_noise=noise)
        chain = _Chain(whole, at=chain.at, step=chain.step * (len(few) / len(x)) ** 0.5)
        for _ in range(_BURN_IN_ON_ALL):
            chain.transition(rng)
    found: list[Hyperparameters] = []
    for _ in range(n):
        for _ in range(thinning):
            chain.transition(rng)
        found.append(Hyperparameters.of(chain.at))
    return tuple(found)


def spread(n: int, most: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """`[min(n, most)]` indices below `n`, evenly spread, the last among them."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Place:
    vector: Array
    value: float
    gradient: Array


@final
class _Chain:
    """A Markov chain over vectors `[d + 2]` (`Hyperparameters.vector`), with the density of the vectors themselves."""

    def __init__(self, density: Density, *, at: Array, step: float) -> None:
        self._density, self._bounds = density, np.array(density.bounds()).T
        self._place = self._placed(at)
        self.step = step

    @property
    def at(self) -> Array:
        return self._place.vector

    def transition(self, rng: np.random.Generator) -> float:
        """One trajectory, accepted or not; returns the probability with which it was accepted."""
        step = self.step * rng.uniform(1 - _JITTER, 1 + _JITTER)
        momentum, uniform, place = rng.standard_normal(len(self.at)), rng.random(), self._place
        before = place.value - 0.5 * momentum @ momentum
        for _ in range(LEAPFROG_STEPS):
            momentum = momentum + 0.5 * step * place.gradient
            place = self._placed(place.vector + step * momentum)
            if not np.isfinite(place.value):
                return 0.0
            momentum = momentum + 0.5 * step * place.gradient
        accepted = float(np.exp(min(0.0, place.value - 0.5 * momentum @ momentum - before)))
        if uniform < accepted:
            self._place = place
        return accepted

    def _placed(self, vector: Array) -> _Place:
        """The density of the logarithms: that of length-scales and noise times each of them, the Jacobian."""
        low, high = self._bounds
        nowhere = _Place(vector, -np.inf, np.zeros(len(vector)))
        if (vector < low).any() or (vector > high).any():
            return nowhere
        try:
            value, gradient = self._density(vector)
        except (LinAlgError, ValueError):
            return nowhere
        jacobian = np.append(np.ones(len(vector) - 1), 0.0)
        return _Place(vector, value + float(vector[:-1].sum()), gradient + jacobian)
