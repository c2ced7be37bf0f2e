import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.objectives.pareto import Array
from autopeft.search.hyperparameters import Density, Hyperparameters, likeliest
from tests.search.twins import botorch_model


def data(n: int, d: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.random((n, d))
    y = np.sin(3 * x[:, 0]) + x[:, -1] * x[:, d // 2] + 0.1 * rng.standard_normal(n)
    return x, (y - y.mean()) / y.std()


def botorch_density(x: Array, z: Array, at: Hyperparameters) -> float:
    import torch
    from gpytorch.mlls import ExactMarginalLogLikelihood

    model = botorch_model(x, z)
    model.covar_module.lengthscale = torch.from_numpy(at.lengthscales)
    model.likelihood.noise = at.noise
    model.mean_module.constant = at.constant
    model.train()
    with torch.no_grad():
        return (
            len(z) * ExactMarginalLogLikelihood(model.likelihood, model)(model(x_of(model)), model.train_targets).item()
        )


def x_of(model):
    return model.train_inputs[0]


@pytest.mark.parametrize(("n", "d"), [(5, 1), (20, 4), (60, 30)])
def test_the_density_is_botorchs(n: int, d: int) -> None:
    x, z = data(n, d)
    density = Density(x, z)
    vector = density.start() + 0.3 * np.random.default_rng(1).standard_normal(d + 2)
    assert density(vector)[0] == pytest.approx(botorch_density(x, z, Hyperparameters.of(vector)), rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 1000))
def test_the_gradient_is_that_of_the_density(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    density = Density(rng.random((n, d)), rng.standard_normal(n))
    vector = density.start() + 0.5 * rng.standard_normal(d + 2)
    step = 1e-5
    numeric = [
        (density(vector + step * unit)[0] - density(vector - step * unit)[0]) / (2 * step) for unit in np.eye(d + 2)
    ]
    np.testing.assert_allclose(density(vector)[1], numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(12, 8), (60, 20)])
def test_the_likeliest_are_at_least_as_likely_as_botorchs_fit(n: int, d: int) -> None:
    from botorch.fit import fit_gpytorch_mll
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, z = data(n, d)
    model = botorch_model(x, z)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    theirs = Hyperparameters(
        lengthscales=model.covar_module.lengthscale.detach().numpy().reshape(-1),
        noise=model.likelihood.noise.item(),
        constant=model.mean_module.constant.item(),
    )
    density = Density(x, z)
    assert density(likeliest(x, z).vector)[0] >= density(theirs.vector)[0] - 0.05


def test_irrelevant_inputs_get_longer_scales() -> None:
    x, z = data(80, 6)
    found = likeliest(x, z).lengthscales
    assert max(found[0], found[3], found[5]) < min(found[1], found[2], found[4])


def test_repeated_points_and_constant_outcomes_have_a_fit() -> None:
    x, _ = data(10, 3)
    assert np.isfinite(likeliest(np.repeat(x, 2, axis=0), np.zeros(20)).vector).all()


def test_what_is_not_finite_is_refused() -> None:
    x, z = data(10, 3)
    z[0] = np.nan
    with pytest.raises((np.linalg.LinAlgError, ValueError)):
        likeliest(x, z)


def test_typical_length_scales_stand_in_place_of_the_priors() -> None:
    x, z = data(6, 3)
    typical = np.array([0.3, 4.0, 4.0])
    told = likeliest(x, z, typical=typical).lengthscales
    assert told[0] < 0.5 * min(told[1:])
    at = Density(x, z, typical=typical).start()
    density = [Density(x, z, typical=scales)(at)[0] for scales in (typical, 30 * typical)]
    assert density[0] > density[1]
