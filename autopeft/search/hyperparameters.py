"""Hyper-parameters of a Matern-5/2 process: how likely they are, and the likeliest ones.

In NumPy with gradients by hand: a call of GPyTorch's costs milliseconds whatever its size, and a fit takes dozens.
BoTorch's model is the twin in the tests.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky
from scipy.optimize import minimize

from autopeft.objectives.pareto import Array

MAX_ITERATIONS = 75
"""L-BFGS steps of a fit; at 200 points they give the accuracy of no limit."""

LENGTHSCALE_BOUNDS = (2.5e-2, 1e4)
NOISE_BOUNDS = (1e-4, 1e2)
_SQRT5 = float(np.sqrt(5.0))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """Of a Matern-5/2 process with unit signal variance on standardised outcomes."""

    lengthscales: Array
    """`[d]`."""
    noise: float
    """Noise variance."""
    constant: float
    """Prior mean."""

    @property
    def vector(self) -> Array:
        """`[d + 2]`: logarithms of length-scales and noise, then the constant."""
        return np.array([*np.log(self.lengthscales), np.log(self.noise), self.constant])

    @classmethod
    def of(cls, vector: Array) -> "Hyperparameters":
        return cls(lengthscales=np.exp(vector[:-2]), noise=float(np.exp(vector[-2])), constant=float(vector[-1]))


TYPICAL_SPREADS = (0.6, 1.0)
"""Deviations of the logarithm of a length-scale about a typical one that is below 1, and about one that is not: that
outcomes answer to an input quickly is known, that they hardly do is only what to expect of one of many."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Log-normal priors, each as (location, scale) of the logarithm; the constant's is flat."""

    lengthscales: tuple[float, float]
    """The location is that for one dimension; it grows by log(d) / 2 with the dimension, so that the typical distance
    of two points in length-scales does not grow."""
    noise: tuple[float, float]


MAXIMISED = Prior(lengthscales=(float(np.sqrt(2.0)), float(np.sqrt(3.0))), noise=(-4.0, 1.0))
"""BoTorch's, made to be maximised.

Source: Hvarfner, Hellsten and Nardi 2024, "Vanilla Bayesian Optimization Performs Great in High Dimensions".
"""


@final
class Density:
    """Log density of hyper-parameters given standardised outcomes `z` `[n]` at `x` `[n, d]`.

    As density of the length-scales and the noise themselves, not of their logarithms.

    Args:
        x: Inputs.
        z: Outcomes.
        prior: Of the hyper-parameters.
        typical: `[d]` medians of the length-scales where something is known of the inputs, in place of `prior`'s.
        least_noise: A bound below which the noise is known not to be.
    """

    def __init__(
        self,
        x: Array,
        z: Array,
        *,
        prior: Prior = MAXIMISED,
        typical: Array | None = None,
        least_noise: float = 0.0,
    ) -> None:
        self.x, self.z = x, z
        self._noise_bounds = (max(NOISE_BOUNDS[0], least_noise), max(NOISE_BOUNDS[1], 2 * least_noise))
        d = x.shape[1]
        location, scale = prior.lengthscales
        alike = np.full(d, location + np.log(max(d, 1)) / 2)
        self._lengthscales = (alike, scale) if typical is None else (np.log(typical), _spreads(typical))
        self._noise = prior.noise

    def start(self) -> Array:
        """`[d + 2]` the priors' modes."""
        lengthscales, noise = (location - scale**2 for location, scale in (self._lengthscales, self._noise))
        lengthscales = np.log(np.clip(np.exp(lengthscales), *LENGTHSCALE_BOUNDS))
        noise = np.log(np.clip(np.exp(noise), *self._noise_bounds))
        return np.array([*lengthscales, noise, 0.0])

    def bounds(self) -> list[tuple[float, float]]:
        """Of every entry of a vector."""
        low, high = np.log(LENGTHSCALE_BOUNDS)
        return [(low, high)] * self.x.shape[1] + [tuple(np.log(self._noise_bounds)), (-5.0, 5.0)]

    def __call__(self, vector: Array) -> tuple[float, Array]:
        """Log density at `vector` `[d + 2]` (see `Hyperparameters.vector`) and its `[d + 2]` gradient.

        Cost: O(n^3 + n^2 d).

        Raises:
            LinAlgError: The kernel matrix is not positive definite.
        """
        n, one = len(self.z), Hyperparameters.of(vector)
        scaled = self.x / one.lengthscales
        r = _distances(scaled)
        decay = np.exp(-r)
        kernel = (1.0 + r + r**2 / 3.0) * decay
        kernel[np.diag_indices(n)] = 1.0 + one.noise
        factor = cholesky(kernel, lower=True)
        inverse = cho_solve((factor, True), np.eye(n), check_finite=False)
        residual = self.z - one.constant
        weights = inverse @ residual
        value = -0.5 * residual @ weights - np.log(np.diag(factor)).sum() - 0.5 * n * np.log(2 * np.pi)
        outer = np.outer(weights, weights) - inverse
        slope = outer * ((5.0 / 3.0) * (1.0 + r) * decay)  # dk / d log l = 5/3 (1 + r) e^-r (difference / l)^2
        lengthscales = (scaled**2).T @ slope.sum(axis=1) - np.einsum("nd,nd->d", scaled, slope @ scaled)
        gradient = np.array([*lengthscales, 0.5 * one.noise * np.trace(outer), weights.sum()])
        prior, prior_gradient = self._prior(vector)
        return float(value + prior), gradient + prior_gradient

    def _prior(self, vector: Array) -> tuple[float, Array]:
        value, gradient = 0.0, np.zeros(len(vector))
        for part, (location, scale) in (
            (slice(0, -2), self._lengthscales),
            (slice(-2, -1), self._noise),
        ):
            logs = vector[part]
            apart = (logs - location) / scale
            value += float((-0.5 * apart**2 - logs - np.log(scale * np.sqrt(2 * np.pi))).sum())
            gradient[part] = -apart / scale - 1.0
        return value, gradient


def likeliest(x: Array, z: Array, *, typical: Array | None = None, least_noise: float = 0.0) -> Hyperparameters:
    """Maximum a posteriori for standardised outcomes `z` `[n]` at `x` `[n, d]`; deterministic.

    Raises:
        LinAlgError: No start has a finite density.
    """
    density = Density(x, z, typical=typical, least_noise=least_noise)
    found = minimize(
        _negative(density),
        density.start(),
        jac=True,
        method="L-BFGS-B",
        bounds=density.bounds(),
        options={"maxiter": MAX_ITERATIONS},
    )
    if not np.isfinite(found.fun) or found.fun >= _REFUSED:
        raise LinAlgError(f"no finite density for {len(z)} observations")
    return Hyperparameters.of(np.asarray(found.x))


def _spreads(typical: Array) -> Array:
    return np.where(typical < 1.0, *TYPICAL_SPREADS)


_REFUSED = 1e25
"""Value of a vector whose kernel matrix cannot be factored: L-BFGS then takes a shorter step."""


def _negative(density: Density):
    def value(vector: Array) -> tuple[float, Array]:
        try:
            found, gradient = density(vector)
        except (LinAlgError, ValueError):
            return _REFUSED, np.zeros(len(vector))
        return -found, -gradient

    return value


def _distances(scaled: Array) -> Array:
    """`[n, n]` of sqrt(5) times the Euclidean distance of rows."""
    squares = (scaled**2).sum(axis=1)
    squared = squares[:, None] + squares[None, :] - 2.0 * (scaled @ scaled.T)
    return _SQRT5 * np.sqrt(np.maximum(squared, 0.0))
