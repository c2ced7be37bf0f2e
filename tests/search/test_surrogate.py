import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import norm

from autopeft.objectives.pareto import Array
from autopeft.search import surrogate
from autopeft.search.hyperparameters import Hyperparameters, likeliest
from autopeft.search.surrogate import Averaged, SurrogateError, condition, fit, matern
from tests.search.twins import botorch_model


def data(n: int = 25, d: int = 4) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    x = rng.random((n, d))
    return x, np.sin(5 * x[:, 0]) + x[:, 1] + 0.01 * rng.standard_normal(n)


def test_the_posterior_equals_gpytorchs() -> None:
    import torch

    x, y = data()
    process = fit(x, y, seed=0).each[0]
    model = botorch_model(x, process.z)
    model.covar_module.lengthscale = torch.from_numpy(process.hyperparameters.lengthscales)
    model.likelihood.noise = process.hyperparameters.noise
    model.mean_module.constant = process.hyperparameters.constant
    points = np.random.default_rng(4).random((30, 4))
    expected = model.posterior(torch.from_numpy(points))
    mean, deviation = process.posterior(points)
    expected_mean = process.location + process.scale * expected.mean.detach().numpy()[:, 0]
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5)
    np.testing.assert_allclose(deviation, process.scale * np.sqrt(expected.variance.detach().numpy()[:, 0]), rtol=1e-4)


def test_it_learns_a_smooth_function() -> None:
    process = fit(*data(60), seed=0)
    points = np.random.default_rng(5).random((200, 4))
    truth = np.sin(5 * points[:, 0]) + points[:, 1]
    mean, deviation = process.posterior(points)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.2 * truth.std()
    assert np.mean(np.abs(mean - truth) < 2 * deviation) > 0.85


def test_an_average_is_the_mixture_of_its_processes() -> None:
    process = fit(*data(), seed=0)
    points = np.random.default_rng(7).random((5, 4))
    rng = np.random.default_rng(8)
    each = [one.posterior(points) for one in process.each]
    samples = np.concatenate([mean + deviation * rng.standard_normal((40_000, 5)) for mean, deviation in each])
    mean, deviation = process.posterior(points)
    assert len({one.hyperparameters.noise for one in process.each}) > 6
    np.testing.assert_allclose(mean, samples.mean(axis=0), atol=5e-3)
    np.testing.assert_allclose(deviation, samples.std(axis=0), rtol=1e-2)


def test_from_few_outcomes_it_says_better_what_will_be_seen_than_the_likeliest_alone() -> None:
    """After sixteen noisy outcomes of a function of four of ten inputs: log density and coverage of 90 % intervals."""
    rows: list[tuple[float, float, float, float]] = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, new = rng.random((16, 10)), rng.random((100, 10))
        seen, truth = (np.sin(3 * points[:, :4]).sum(axis=1) for points in (x, new))
        averaged = fit(x, seen + 0.15 * seen.std() * rng.standard_normal(16), seed=seed)
        one = averaged.each[0]
        alone = condition(likeliest(x, one.z), x, one.z, location=one.location, scale=one.scale)
        rows.append((*scored(averaged, new, truth), *scored(Averaged(each=(alone,)), new, truth)))
    density, coverage, density_alone, coverage_alone = np.mean(rows, axis=0)
    assert density > density_alone + 0.02
    assert coverage > coverage_alone + 0.02


def scored(process: Averaged, new: Array, truth: Array) -> tuple[float, float]:
    means, deviations = process.posteriors(new)
    mean, deviation = process.posterior(new)
    density = np.log(norm.pdf(truth, means, deviations).mean(axis=0)).mean()
    return float(density), float(np.mean(np.abs(mean - truth) < 1.645 * deviation))


def test_correlation_is_one_at_distance_zero_and_the_published_value_elsewhere() -> None:
    a, b = np.array([[0.2, 0.4]]), np.array([[0.2, 0.4], [0.5, 0.8]])
    r = np.sqrt(5) * np.hypot(0.3 / 0.5, 0.4 / 2.0)
    np.testing.assert_allclose(matern(a, b, np.array([0.5, 2.0])), [[1.0, (1 + r + r**2 / 3) * np.exp(-r)]])


def test_a_fantasy_shrinks_deviations_and_keeps_means() -> None:
    process = fit(*data(), seed=0)
    points = np.random.default_rng(6).random((20, 4))
    fantasised = process.fantasise(points[:3])
    before, after = process.posterior(points), fantasised.posterior(points)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-6, atol=1e-8)
    assert (after[1] <= before[1] + 1e-9).all()
    assert (after[1][:3] < 0.8 * before[1][:3]).all()
    assert process.fantasise(points[:0]) is process


def test_a_constant_outcome_is_predicted_as_it_is() -> None:
    x, _ = data()
    mean, deviation = fit(x, np.full(len(x), 0.5), seed=0).posterior(x)
    np.testing.assert_allclose(mean, 0.5, atol=1e-3)
    assert np.isfinite(deviation).all()


def test_repeated_inputs_are_noise() -> None:
    x = np.repeat(np.random.default_rng(0).random((6, 3)), 3, axis=0)
    mean, _ = fit(x, np.arange(18.0) % 3, seed=0).posterior(x)
    np.testing.assert_allclose(mean, 1.0, atol=0.3)


def test_a_fit_is_repeatable() -> None:
    x, y = data()
    first = fit(x, y, seed=0)
    surrogate._remembered.cache_clear()
    second, other = fit(x, y, seed=0), fit(x, y, seed=1)
    lengthscales = [one.each[-1].hyperparameters.lengthscales.tolist() for one in (first, second, other)]
    assert lengthscales[0] == lengthscales[1] != lengthscales[2]


def test_many_observations_refresh_hyperparameters_by_the_tenth_and_the_posterior_always() -> None:
    x, y = data(59)
    smaller, larger = fit(x[:55], y[:55], seed=0), fit(x, y, seed=0)
    assert all(one.hyperparameters is two.hyperparameters for one, two in zip(smaller.each, larger.each, strict=True))
    assert len(larger.each[0].x) == 59
    assert [surrogate._refreshed_at(n) for n in (3, 49, 50, 54, 55, 65, 66, 72)] == [3, 49, 50, 50, 55, 60, 66, 72]


def test_outcomes_that_are_not_finite_are_refused() -> None:
    x, y = data()
    y[3] = np.nan
    with pytest.raises(SurrogateError, match="an input or outcome of 25 observations is not finite"):
        fit(x, y, seed=0)


def test_a_singular_kernel_matrix_is_said_to_be_one() -> None:
    hyperparameters = Hyperparameters(lengthscales=np.ones(2), noise=-1e-3, constant=0.0)
    with pytest.raises(SurrogateError, match=r"kernel matrix of 2 observations: .*not positive definite"):
        condition(hyperparameters, np.zeros((2, 2)), np.zeros(2), location=0.0, scale=1.0)


def test_a_fit_that_fails_is_said_to_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("no finite density for 25 observations")

    surrogate._remembered.cache_clear()
    monkeypatch.setattr(surrogate, "draws", refuse)
    with pytest.raises(SurrogateError, match="fit to 25 observations: no finite density"):
        fit(*data(), seed=0)


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys, autopeft.search.table, autopeft.search.surrogate;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'botorch', 'optuna', 'gpytorch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_known_of_the_inputs_is_worth_observations() -> None:
    """Ten noisy outcomes that answer to the first of eleven inputs quickly: correlation of means with the truth."""
    found: list[tuple[float, float]] = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, new = rng.random((10, 11)), rng.random((200, 11))
        seen, truth = (
            np.exp(-0.5 * ((points[:, 0] - 0.6) / 0.2) ** 2) + 0.3 * points[:, 1:4].sum(axis=1) for points in (x, new)
        )
        y = seen + 0.3 * rng.standard_normal(10)
        typical = np.array([0.3, *np.full(10, 5.0)])
        told, plain = (fit(x, y, seed=0, typical=scales).posterior(new)[0] for scales in (typical, None))
        found.append((float(np.corrcoef(told, truth)[0, 1]), float(np.corrcoef(plain, truth)[0, 1])))
    told, plain = np.mean(found, axis=0)
    assert told > plain + 0.15


def test_other_typical_scales_are_another_fit() -> None:
    x, y = data()
    plain, told, again = (fit(x, y, seed=0, typical=scales) for scales in (None, np.full(x.shape[1], 0.2), None))
    vectors = [one.each[0].hyperparameters.vector.tolist() for one in (plain, told, again)]
    assert vectors[0] == vectors[2] != vectors[1]
