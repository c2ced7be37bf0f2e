import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopeft.objectives.objective import METRICS
from autopeft.objectives.pareto import Array
from autopeft.objectives.reference import outlier_limit, reference_point
from tests.objectives.support import ACCURACY, PARAMETERS

PAIR = (ACCURACY, PARAMETERS)
ROWS = arrays(np.float64, st.tuples(st.integers(1, 20), st.just(2)), elements=st.floats(-1e3, 1e3))


def test_it_lies_a_tenth_of_the_range_beyond_the_worst_trial() -> None:
    losses = np.array([[-0.9, 1000.0], [-0.5, 100.0], [-0.8, 500.0]])
    np.testing.assert_allclose(reference_point(losses, PAIR), [-0.46, 1090.0])


def test_a_single_trial_gets_a_tenth_of_its_magnitude() -> None:
    np.testing.assert_allclose(reference_point(np.array([[-0.5, 100.0]]), PAIR), [-0.45, 110.0])
    np.testing.assert_allclose(reference_point(np.array([[0.0, 0.0]]), PAIR), [0.1, 0.1])


def test_a_nearly_diverged_run_does_not_set_the_scale() -> None:
    perplexities = np.array([[8.0], [9.0], [10.0], [12.0], [1e9]])
    assert reference_point(perplexities, (METRICS["perplexity"],))[0] == pytest.approx(100.0 + 9.2)


def test_costs_and_scores_keep_their_whole_range() -> None:
    column = np.array([[1.0], [2.0], [3.0], [1e9]])
    assert reference_point(column, (PARAMETERS,))[0] == pytest.approx(1e9 + (1e9 - 1) / 10)
    matthews = np.array([[-0.9], [-0.89], [-0.89], [0.1]])
    assert reference_point(matthews, (METRICS["matthews"],))[0] == pytest.approx(0.2)


def test_without_a_scale_nothing_is_an_accident() -> None:
    assert outlier_limit(np.array([-1.0, 0.0, 5.0]), METRICS["perplexity"]) == np.inf
    assert outlier_limit(np.empty(0), METRICS["perplexity"]) == np.inf


@given(ROWS)
def test_the_best_trial_of_every_objective_is_inside(losses: Array) -> None:
    assert (losses.min(axis=0) < reference_point(losses, PAIR)).all()


@given(ROWS, st.floats(0, 1))
def test_it_does_not_move_for_a_trial_within_the_range_of_costs(losses: Array, share: float) -> None:
    inner = share * losses.min(axis=0) + (1 - share) * losses.max(axis=0)
    inner = np.clip(inner, losses.min(axis=0), losses.max(axis=0))
    both = np.vstack([losses, inner])
    assert reference_point(both, (PARAMETERS, PARAMETERS)).tolist() == (
        reference_point(losses, (PARAMETERS, PARAMETERS)).tolist()
    )
