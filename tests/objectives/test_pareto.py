import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopeft.objectives.pareto import Array, crowding_distance, knee, non_dominated, non_dominated_ranks
from tests.objectives.support import dominated_slowly

SHAPES = st.tuples(st.integers(0, 12), st.integers(1, 4))
LOSSES = arrays(np.float64, SHAPES, elements=st.integers(0, 4).map(float))
FILLED = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.integers(0, 4).map(float))


@given(LOSSES)
def test_the_mask_agrees_with_the_definition_of_dominance(losses: Array) -> None:
    assert (~non_dominated(losses)).tolist() == dominated_slowly(losses)


@given(FILLED)
def test_every_dropped_row_is_covered_by_a_kept_one(losses: Array) -> None:
    kept = losses[non_dominated(losses)]
    assert all((kept <= row).all(axis=1).any() for row in losses)


def test_of_equal_rows_the_first_stands_for_all() -> None:
    assert non_dominated(np.array([[2.0, 2.0], [1.0, 1.0], [1.0, 1.0]])).tolist() == [False, True, False]


def test_a_row_with_nan_is_never_on_the_front_and_dominates_nothing() -> None:
    assert non_dominated(np.array([[np.nan, 0.0], [1.0, 1.0]])).tolist() == [False, True]
    assert non_dominated_ranks(np.array([[np.nan, 0.0], [1.0, 1.0]])).tolist() == [1, 0]


@given(FILLED)
def test_ranks_peel_the_fronts_one_after_another(losses: Array) -> None:
    ranks = non_dominated_ranks(losses)
    for index, row in enumerate(losses):
        dominating = (losses <= row).all(axis=1) & (losses < row).any(axis=1)
        assert ranks[index] == (ranks[dominating].max() + 1 if dominating.any() else 0)


def test_crowding_keeps_ends_and_prefers_lonely_rows() -> None:
    front = np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0], [9.0, 1.0], [10.0, 0.0]])
    distance = crowding_distance(front)
    assert np.isinf(distance[[0, 4]]).all()
    assert distance[1] < distance[2] < distance[3] + 1e-12
    np.testing.assert_allclose(distance[1], 0.2 + 0.2)


def test_crowding_of_equal_rows_is_infinite_for_all() -> None:
    assert np.isinf(crowding_distance(np.ones((3, 2)))).all()
    assert crowding_distance(np.empty((0, 2))).shape == (0,)


def test_the_knee_of_a_bent_front_is_its_corner() -> None:
    assert knee(np.array([[0.0, 10.0], [1.0, 1.0], [10.0, 0.0]])) == 1


def test_the_knee_of_one_row_is_that_row() -> None:
    assert knee(np.array([[3.0, 4.0]])) == 0


def test_the_knee_of_two_rows_is_the_better_in_the_first_objective() -> None:
    assert knee(np.array([[5.0, 0.0], [0.1, 7.0]])) == 1


def test_the_knee_ignores_an_objective_that_does_not_vary() -> None:
    assert knee(np.array([[0.0, 3.0, 9.0], [1.0, 3.0, 1.0], [9.0, 3.0, 0.0]])) == 1


def test_weights_tilt_the_plane() -> None:
    front = np.array([[0.0, 10.0], [3.0, 4.0], [5.0, 3.0], [10.0, 0.0]])
    assert knee(front) == 1
    assert knee(front, weights=np.array([0.1, 1.0])) == 3


@given(FILLED, st.lists(st.floats(0.5, 100), min_size=4, max_size=4))
def test_the_knee_does_not_depend_on_units_or_order(losses: Array, factors: list[float]) -> None:
    front = losses[non_dominated(losses)]
    chosen = front[knee(front)]
    scale = np.array(factors[: front.shape[1]])
    np.testing.assert_allclose((front * scale)[knee(front * scale)], chosen * scale)
    flipped = front[::-1]
    assert flipped[knee(flipped)].tolist() == chosen.tolist()
