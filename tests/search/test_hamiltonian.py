import numpy as np
import pytest

from autopeft.objectives.pareto import Array
from autopeft.search.hamiltonian import PRIOR, draws, spread
from autopeft.search.hyperparameters import Density


def data(n: int, d: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    x = rng.random((n, d))
    y = np.sin(4 * x[:, 0]) + 0.2 * rng.standard_normal(n)
    return x, (y - y.mean()) / y.std()


def moments_on_a_grid(x: Array, z: Array) -> tuple[Array, Array]:
    """Mean and deviation of (log length-scale, log noise, constant) by summing the density over a grid."""
    density = Density(x, z, prior=PRIOR)
    axes = (np.linspace(-3, 4, 36), np.linspace(-9, 2, 30), np.linspace(-4, 4, 25))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    logs = np.array([density(vector)[0] + vector[:2].sum() for vector in grid])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean = weights @ grid
    return mean, np.sqrt(weights @ (grid - mean) ** 2)


def test_draws_have_the_moments_of_the_posterior() -> None:
    x, z = data(8, 1)
    mean, deviation = moments_on_a_grid(x, z)
    found = np.array([one.vector for one in draws(x, z, n=2500, thinning=1, seed=0)])
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.15 * deviation.max())
    np.testing.assert_allclose(found.std(axis=0), deviation, rtol=0.2)


def test_many_observations_narrow_the_draws_and_find_the_noise() -> None:
    x, z = data(160, 3)
    noise = 0.2**2 / np.var(np.sin(4 * x[:, 0]))
    found = np.array([one.noise for one in draws(x, z, n=20, thinning=2, seed=0)])
    few = np.array([one.noise for one in draws(x[:12], z[:12], n=20, thinning=2, seed=0)])
    assert np.log(found).std() < np.log(few).std()
    assert found.mean() == pytest.approx(noise, rel=0.35)


def test_draws_repeat_with_their_seed_alone() -> None:
    x, z = data(12, 2)
    first, same, other = (draws(x, z, n=3, thinning=1, seed=seed)[-1].vector.tolist() for seed in (0, 0, 1))
    assert first == same != other


def test_a_spread_keeps_the_ends() -> None:
    assert spread(3, 5).tolist() == [0, 1, 2]
    assert spread(101, 11).tolist() == list(range(0, 101, 10))
