"""Layer importances as a prior."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autopeft.spaces.layer_prior import inclusion_weights, onto_depth, weighted_sample
from tests.spaces.builders import bind


def test_importances_become_chances_by_layer() -> None:
    weights = inclusion_weights({"importance/10": 0.0, "importance/2": 2.0, "grad_norm": 7.0})
    assert list(weights) == [2, 10]
    assert weights[10] == 0.5
    assert abs(weights[2] - 0.8807970779778823) < 1e-12
    assert inclusion_weights({"train_share": 1.0}) == {}


@given(st.integers(1, 30), st.integers(1, 30))
def test_layers_of_another_depth_take_the_nearest_relative_depth(n_from: int, n_to: int) -> None:
    found = onto_depth({layer: float(layer) for layer in range(n_from)}, n_from, n_to)
    assert list(found) == list(range(n_to))
    for layer, nearest in found.items():
        assert 2 * abs(nearest * max(n_to - 1, 1) - layer * (n_from - 1)) <= max(n_to - 1, 1)
    assert found[0] == 0
    assert n_to == 1 or found[n_to - 1] == n_from - 1
    assert n_from != n_to or all(nearest == layer for layer, nearest in found.items())


def test_layers_that_the_source_did_not_adapt_have_no_weight() -> None:
    assert onto_depth({1: 0.7}, 3, 3) == {1: 0.7}
    assert onto_depth({1: 0.7}, 3, 5) == {1: 0.7, 2: 0.7}


def test_favoured_layers_are_adapted_more_often() -> None:
    space = bind({"layers": "subset", "lora": {"rank": "choice(2, 4)"}}, n_layers=4, constraints=["parameters <= 2000"])
    weights = {0: 0.1, 2: 0.9}
    drawn = weighted_sample(space, weights, np.random.default_rng(0), 400)
    assert len(drawn) == 400
    assert all(space.contains(one) for one in drawn)
    share = [sum(layer in one.adapted_layers for one in drawn) / 400 for layer in range(4)]
    uniform = [
        sum(layer in one.adapted_layers for one in space.sample(np.random.default_rng(1), 400)) / 400
        for layer in range(4)
    ]
    assert share[0] < uniform[0] - 0.1
    assert share[2] > uniform[2] + 0.1
    assert all(abs(share[layer] - uniform[layer]) < 0.12 for layer in (1, 3))


def test_draws_are_a_function_of_the_generator() -> None:
    space = bind({"layers": "range", "lora": {"rank": 2}}, n_layers=6)
    first, second = (weighted_sample(space, {1: 0.8}, np.random.default_rng(3), 9) for _ in range(2))
    assert first == second
