"""A Gaussian process for what only training tells, in NumPy.

The local search asks the posterior for a few dozen candidates hundreds of times, and a GPyTorch call costs milliseconds
whatever its size. BoTorch's model is the twin in the tests.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

from autopeft.errors import AutoPeftError
from autopeft.objectives.pareto import Array
from autopeft.search.hamiltonian import draws, spread
from autopeft.search.hyperparameters import Hyperparameters, Prior

REFRESH_ABOVE = 50
"""Observations from which on the hyper-parameters are found again only when there are a tenth more."""

LEARNED_FROM = 250
"""Observations, at most, from which the hyper-parameters are learned, evenly spread over the history."""

_MANY = 100
"""Observations above which draws of hyper-parameters are alike, and half as many are taken."""

_SQRT5 = float(np.sqrt(5.0))


class SurrogateError(AutoPeftError, ArithmeticError):
    """The surrogate could not be fitted to these observations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianProcess:
    """A posterior over functions of [0, 1]^d, in the outcome's own unit. Build one with `condition`."""

    hyperparameters: Hyperparameters
    x: Array
    """`[n, d]` inputs."""
    z: Array
    """`[n]` standardised outcomes."""
    location: float
    scale: float
    """An outcome is location + scale * z."""
    factor: Array
    """`[n, n]` lower Cholesky factor of the kernel matrix with noise."""
    weights: Array
    """`[n]` the kernel matrix with noise, inverted, times (z - constant)."""

    def posterior(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free function at `x`.

        Args:
            x: `[q, d]`.

        Returns:
            `[q]` means, `[q]` deviations (>= 0). Cost: O(q n^2).
        """
        cross = matern(x, self.x, self.hyperparameters.lengthscales)
        mean = self.hyperparameters.constant + cross @ self.weights
        solved = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        variance = np.maximum(1.0 - (solved**2).sum(axis=0), 0.0)
        return self.location + self.scale * mean, self.scale * np.sqrt(variance)

    def fantasise(self, x: Array) -> "GaussianProcess":
        """The posterior had each of `x` been observed at its present posterior mean ("kriging believer").

        Args:
            x: `[q, d]`; none leaves the process as it is.

        Raises:
            SurrogateError: The kernel matrix became singular.

        Source: Ginsbourger, Le Riche and Carraro 2010. Hyper-parameters and means stay, deviations shrink.
        """
        if not len(x):
            return self
        z = (self.posterior(x)[0] - self.location) / self.scale
        return condition(
            self.hyperparameters,
            np.vstack([self.x, x]),
            np.concatenate([self.z, z]),
            location=self.location,
            scale=self.scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """Processes of one history, each with hyper-parameters drawn from their posterior. Build one with `fit`."""

    each: tuple[GaussianProcess, ...]

    def posterior(self, x: Array) -> tuple[Array, Array]:
        """`[q]` means and `[q]` standard deviations at `x` `[q, d]` of the equal mixture of all."""
        return mixed(*self.posteriors(x))

    def posteriors(self, x: Array) -> tuple[Array, Array]:
        """`[s, q]` means and `[s, q]` deviations at `x` `[q, d]`, a row for each process."""
        found = [process.posterior(x) for process in self.each]
        return np.array([mean for mean, _ in found]), np.array([deviation for _, deviation in found])

    def fantasise(self, x: Array) -> "Averaged":
        """Each process had each of `x` `[q, d]` been observed at that process's mean.

        Raises:
            SurrogateError: A kernel matrix became singular.
        """
        return self if not len(x) else Averaged(each=tuple(process.fantasise(x) for process in self.each))


def mixed(means: Array, deviations: Array) -> tuple[Array, Array]:
    """`[q]` means and `[q]` deviations of the equal mixture of s normals `[s, q]` each."""
    mean = means.mean(axis=0)
    return mean, np.sqrt((deviations**2).mean(axis=0) + ((means - mean) ** 2).mean(axis=0))


def matern(a: Array, b: Array, lengthscales: Array) -> Array:
    """`[n, m]` Matern-5/2 correlations of the rows of `a` `[n, d]` and `b` `[m, d]`."""
    a, b = a / lengthscales, b / lengthscales
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    distance = _SQRT5 * np.sqrt(np.maximum(squared, 0.0))
    return (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)


def condition(
    hyperparameters: Hyperparameters, x: Array, z: Array, *, location: float, scale: float
) -> GaussianProcess:
    """The posterior given standardised outcomes `z` `[n]` at `x` `[n, d]`. Cost: O(n^3).

    Raises:
        SurrogateError: The kernel matrix is singular, or something is not finite.
    """
    kernel = matern(x, x, hyperparameters.lengthscales)
    kernel[np.diag_indices_from(kernel)] = 1.0 + hyperparameters.noise
    try:
        factor = cholesky(kernel, lower=True)
        weights = cho_solve((factor, True), z - hyperparameters.constant)
    except (LinAlgError, ValueError) as error:
        raise SurrogateError(f"kernel matrix of {len(x)} observations: {error}") from error
    return GaussianProcess(
        hyperparameters=hyperparameters, x=x, z=z, location=location, scale=scale, factor=factor, weights=weights
    )


def fit(
    x: Array, y: Array, *, seed: int, typical: Array | None = None, noise: float = 0.0, prior: Prior | None = None
) -> Averaged:
    """The posterior of a process given outcomes `y` at `x`, averaged over its hyper-parameters (`hamiltonian.draws`).

    Outcomes are standardised; a constant outcome is fitted as one, with unit scale. Twelve draws are taken, six above
    100 observations. Above 50 observations they are those of the first 50, 55, 60, 66, ... (a tenth more each time),
    which are remembered, and of at most 250 of these; the posterior always rests on all observations.

    Args:
        x: `[n, d]` in [0, 1], n >= 2, oldest first.
        y: `[n]`.
        seed: Of the draws.
        typical: `[d]` length-scales to be expected of inputs of which something is known (`SearchSpace.lengthscales`).
        noise: Variance of the outcomes at one input, where it was measured: the draws' own is not below it.
        prior: Of the hyper-parameters; None as for `hamiltonian.draws`.

    Raises:
        SurrogateError: The fit failed, the kernel matrix is singular, or something is not finite.
    """
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SurrogateError(f"an input or outcome of {len(x)} observations is not finite")
    first = _refreshed_at(len(x))
    z, _, scale = _standardised(y[:first])
    scales = None if typical is None else tuple(map(float, typical))
    drawn = _remembered(
        x[:first].tobytes(), z.tobytes(), n=first, seed=seed, typical=scales, noise=noise / scale**2, prior=prior
    )
    z, location, scale = _standardised(y)
    return Averaged(each=tuple(condition(one, x, z, location=location, scale=scale) for one in drawn))


def _standardised(y: Array) -> tuple[Array, float, float]:
    location, scale = float(y.mean()), float(y.std()) or 1.0
    return (y - location) / scale, location, scale


def _refreshed_at(n: int) -> int:
    """The largest of 50, 55, 60, 66, ... that is not above `n`; `n` itself below."""
    if n < REFRESH_ABOVE:
        return n
    size = REFRESH_ABOVE
    while (larger := size + size // 10) <= n:
        size = larger
    return size


@lru_cache(maxsize=16)
def _remembered(
    x: bytes, z: bytes, *, n: int, seed: int, typical: tuple[float, ...] | None, noise: float, prior: Prior | None
) -> tuple[Hyperparameters, ...]:
    """`draws` for the float64 arrays with these bytes; they take up to a second, so those of equal ones are kept."""
    rows = spread(n, LEARNED_FROM)
    inputs, outcomes = np.frombuffer(x).reshape(n, -1)[rows], np.frombuffer(z)[rows]
    count, thinning = (12, 3) if n <= _MANY else (6, 2)
    scales = None if typical is None else np.array(typical)
    try:
        return draws(inputs, outcomes, n=count, thinning=thinning, seed=seed, typical=scales, noise=noise, prior=prior)
    except (LinAlgError, ValueError) as error:
        raise SurrogateError(f"fit to {n} observations: {error}") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread, and as before afterwards.

    The matrices are small and the machine is usually busy training, where threads that wait for each other spin. It
    also keeps proposals from depending on the number of cores.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield
