import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopeft.errors import InputError
from autopeft.objectives.hypervolume import contributions, hypervolume
from autopeft.objectives.pareto import Array, non_dominated
from tests.objectives.support import volume_by_grid


def losses_of(m: int, *, most: int = 9) -> st.SearchStrategy[Array]:
    return arrays(np.float64, st.tuples(st.integers(0, most), st.just(m)), elements=st.integers(0, 6).map(float))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@settings(deadline=None)
@given(data=st.data())
def test_it_equals_the_volume_of_the_cells_of_a_grid(m: int, data: st.DataObject) -> None:
    losses = data.draw(losses_of(m, most=9 if m < 4 else 6))
    reference = np.full(m, 5.0)
    assert hypervolume(losses, reference) == pytest.approx(volume_by_grid(losses, reference))


@pytest.mark.parametrize(("m", "n"), [(1, 30), (2, 60), (3, 60), (4, 25), (5, 12)])
def test_it_equals_the_volume_of_botorch(m: int, n: int) -> None:
    import torch
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    for seed in range(3):
        losses = np.random.default_rng([m, seed]).random((n, m))
        reference = np.full(m, 0.9)
        inside = losses[(losses < reference).all(axis=1)]
        front = inside[non_dominated(inside)]
        if m == 1:
            expected = 0.9 - losses.min()
        else:
            expected = Hypervolume(torch.from_numpy(-reference)).compute(torch.from_numpy(-front))
        assert hypervolume(losses, reference) == pytest.approx(expected, rel=1e-10)


def test_the_sweep_equals_the_recursion_on_many_points() -> None:
    from autopeft.objectives.hypervolume import _wfg

    losses = np.random.default_rng(0).dirichlet([1, 1, 1], size=60)
    reference = np.full(3, 1.1)
    assert hypervolume(losses, reference) == pytest.approx(_wfg(losses[non_dominated(losses)], reference))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_order_duplicates_and_dominated_points_do_not_matter(m: int, data: st.DataObject) -> None:
    losses = data.draw(losses_of(m))
    reference = np.full(m, 6.5)
    volume = hypervolume(losses, reference)
    worse = np.vstack([losses[::-1], losses, losses + 1.0])
    assert hypervolume(worse, reference) == pytest.approx(volume)


@pytest.mark.parametrize("m", [2, 3, 4])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), factor=st.floats(0.1, 100))
def test_scaling_one_objective_scales_the_volume(m: int, data: st.DataObject, factor: float) -> None:
    losses = data.draw(losses_of(m))
    reference = np.full(m, 6.5)
    scale = np.ones(m)
    scale[data.draw(st.integers(0, m - 1))] = factor
    assert hypervolume(losses * scale, reference * scale) == pytest.approx(factor * hypervolume(losses, reference))


@settings(deadline=None)
@given(losses_of(3), losses_of(3))
def test_more_points_never_lower_it(some: Array, others: Array) -> None:
    reference = np.full(3, 5.0)
    assert hypervolume(np.vstack([some, others]), reference) >= hypervolume(some, reference) - 1e-9


def test_points_on_or_beyond_the_reference_and_nan_add_nothing() -> None:
    reference = np.array([1.0, 1.0])
    assert hypervolume(np.array([[1.0, 0.0], [2.0, -5.0], [np.nan, 0.0]]), reference) == 0.0
    assert hypervolume(np.empty((0, 2)), reference) == 0.0


def test_contributions_are_what_each_point_alone_dominates() -> None:
    losses = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(contributions(losses, np.array([3.0, 3.0])), [1.0, 1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("losses", "reference"), [(np.ones((2, 3)), np.ones(2)), (np.ones(3), np.ones(3)), (np.ones((2, 0)), np.ones(0))]
)
def test_shapes_that_do_not_match_are_refused(losses: Array, reference: Array) -> None:
    with pytest.raises(InputError, match=r"hypervolume: losses of shape .* and a reference of shape .*same m"):
        hypervolume(losses, reference)
