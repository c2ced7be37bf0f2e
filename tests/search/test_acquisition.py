import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.pareto import Array
from autopeft.search.acquisition import FreeRegion


def front_of(k: int) -> st.SearchStrategy[Array]:
    return arrays(np.float64, st.tuples(st.integers(0, 8), st.just(1 + k)), elements=st.integers(0, 6).map(float))


def one(values: list[float]) -> Array:
    return np.array([values])


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_without_uncertainty_it_is_the_hypervolume_gained(k: int, data: st.DataObject) -> None:
    front = data.draw(front_of(k))
    new = data.draw(arrays(np.float64, 1 + k, elements=st.floats(-1, 7)))
    reference = np.full(1 + k, 5.0)
    gain = hypervolume(np.vstack([front, new]), reference) - hypervolume(front, reference)
    region = FreeRegion.of(front, reference)
    found = region.expected_improvement(new[:1], np.zeros(1), costs=one(list(new[1:])).reshape(1, k))
    assert found[0] == pytest.approx(gain, abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_the_boxes_are_disjoint_and_leave_out_what_is_dominated(k: int, data: st.DataObject) -> None:
    front = data.draw(front_of(k))
    reference = np.full(1 + k, 5.0)
    region = FreeRegion.of(front, reference)
    floor = -1.0
    low = np.maximum(region.low, floor)
    free = np.prod(np.maximum(region.high - low, 0.0), axis=1).sum()
    assert free == pytest.approx(6.0 ** (1 + k) - hypervolume(front, reference))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_equals_an_average_over_draws_with_botorchs_partitioning(k: int) -> None:
    import torch
    from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning
    from scipy.stats import norm

    rng = np.random.default_rng(k)
    front = rng.random((12, 1 + k))
    reference = np.full(1 + k, 1.1)
    mean, deviation, costs = rng.random(20), rng.uniform(0.05, 0.4, 20), rng.random((20, k))
    draws = mean[:, None] + deviation[:, None] * norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    partitioning = FastNondominatedPartitioning(torch.from_numpy(-reference), Y=torch.from_numpy(-front))
    lower, upper = (bound.numpy() for bound in partitioning.get_hypercell_bounds())
    wins = np.concatenate([-draws[:, :, None], np.broadcast_to(-costs[:, None, :], (20, 20_000, k))], axis=2)
    gains = np.zeros(draws.shape)
    for bottom, top in zip(lower, upper, strict=True):
        gains += np.prod(np.maximum(np.minimum(wins, top) - bottom, 0.0), axis=2)
    found = FreeRegion.of(front, reference).expected_improvement(mean, deviation, costs=costs)
    np.testing.assert_allclose(found, gains.mean(axis=1), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("u", "k"), [(2, 0), (2, 1), (3, 0)])
def test_several_uncertain_objectives_equal_an_average_over_draws(u: int, k: int) -> None:
    rng = np.random.default_rng(10 * u + k)
    front = rng.random((10, u + k))
    reference = np.full(u + k, 1.1)
    mean, deviation, costs = rng.random((5, u)), rng.uniform(0.05, 0.3, (5, u)), rng.random((5, k))
    found = FreeRegion.of(front, reference).expected_improvement(mean, deviation, costs=costs)
    before = hypervolume(front, reference)
    for index in range(3):
        draws = mean[index] + deviation[index] * rng.standard_normal((500, u))
        gains = [
            hypervolume(np.vstack([front, [*draw, *costs[index]]]), reference) - before for draw in draws
        ]  # the brute-force twin
        assert found[index] == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / np.sqrt(len(gains)) + 1e-9)


def test_two_uncertain_objectives_agree_with_botorchs_closed_form() -> None:
    import torch
    from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.posteriors import GPyTorchPosterior
    from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning
    from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal

    rng = np.random.default_rng(0)
    front, reference = rng.random((10, 2)), np.full(2, 1.1)
    mean, deviation = rng.random((6, 2)), rng.uniform(0.05, 0.3, (6, 2))

    class Fixed(GenericDeterministicModel):
        def posterior(self, X: torch.Tensor, *args: object, **kwargs: object) -> GPyTorchPosterior:  # type: ignore[override]
            index = X[:, 0, 0].long().numpy()
            each = [
                MultivariateNormal(
                    torch.from_numpy(-mean[index, at : at + 1]),
                    torch.from_numpy(deviation[index, at : at + 1] ** 2)[:, :, None],
                )
                for at in range(2)
            ]
            return GPyTorchPosterior(MultitaskMultivariateNormal.from_independent_mvns(each))

    partitioning = FastNondominatedPartitioning(torch.from_numpy(-reference), Y=torch.from_numpy(-front))
    twin = ExpectedHypervolumeImprovement(
        Fixed(lambda X: X, num_outputs=2), ref_point=list(-reference), partitioning=partitioning
    )
    expected = twin(torch.arange(6.0, dtype=torch.float64)[:, None, None]).numpy()
    found = FreeRegion.of(front, reference).expected_improvement(mean, deviation, costs=np.empty((6, 0)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_costs_it_is_expected_improvement() -> None:
    from scipy.stats import norm

    region = FreeRegion.of(np.array([[2.0], [3.0]]), np.array([5.0]))
    mean, deviation = np.array([1.5, 2.5]), np.array([0.5, 1.0])
    z = (2.0 - mean) / deviation
    expected = deviation * (z * norm.cdf(z) + norm.pdf(z))
    np.testing.assert_allclose(region.expected_improvement(mean, deviation, costs=np.empty((2, 0))), expected)


def test_an_empty_front_leaves_everything_below_the_reference_free() -> None:
    region = FreeRegion.of(np.empty((0, 2)), np.array([1.0, 1.0]))
    assert region.expected_improvement(np.zeros(1), np.zeros(1), costs=one([0.25]))[0] == pytest.approx(0.75)
    assert region.expected_improvement(np.zeros(1), np.ones(1), costs=one([2.0]))[0] == 0.0


@settings(deadline=None, max_examples=50)
@given(front_of(2), st.floats(-2, 8), st.floats(0.01, 3))
def test_it_falls_with_the_cost_and_the_mean_and_is_never_negative(front: Array, mean: float, deviation: float) -> None:
    region = FreeRegion.of(front, np.full(3, 5.0))
    costs = np.array([[1.0, 1.0], [2.0, 1.0], [2.0, 3.0], [1.0, 1.0]])
    gains = region.expected_improvement(np.array([mean, mean, mean, mean + 1]), np.full(4, deviation), costs=costs)
    assert (gains >= 0).all()
    assert gains[0] >= gains[1] - 1e-12
    assert gains[1] >= gains[2] - 1e-12
    assert gains[0] >= gains[3] - 1e-12
