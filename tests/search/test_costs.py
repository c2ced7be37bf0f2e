import logging

import numpy as np
import pytest

from autopeft.objectives.objective import COSTS
from autopeft.objectives.pareto import Array
from autopeft.search import costs
from autopeft.search.costs import ExactParameters, Learned, Predicted, cost_of
from autopeft.search.surrogate import SurrogateError
from autopeft.search.trial import History
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from tests.search.support import SPACES, encoder, history_of, measured, space_of

SPACE = space_of("mixed")
SEEN = SPACE.sample(np.random.default_rng(0), 30)
NEW = SPACE.sample(np.random.default_rng(1), 10)
HISTORY = history_of(SEEN, SPACE)


def losses(cost: costs.Cost, configurations: list[Configuration] = NEW) -> Array:
    return cost.losses(configurations, np.array([SPACE.features(one) for one in configurations]))


def test_parameters_are_exact() -> None:
    cost = cost_of(SPACE, COSTS["parameters"], HISTORY, seed=0)
    assert isinstance(cost, ExactParameters)
    assert losses(cost).tolist() == [SPACE.parameters(one) for one in NEW]


def test_memory_is_the_prediction_times_the_ratio_seen() -> None:
    cost = cost_of(SPACE, COSTS["memory"], HISTORY, seed=0)
    assert isinstance(cost, Predicted)
    assert cost.ratio == pytest.approx(1.1)
    np.testing.assert_allclose(losses(cost), [measured(one, SPACE).peak_bytes for one in NEW], rtol=1e-5)
    assert Predicted.of(SPACE, COSTS["memory"], History()).ratio == 1.0


def test_memory_is_learned_where_nothing_predicts_it() -> None:
    blind = SearchSpace.bind(SpaceDefinition.from_mapping(SPACES["mixed"]), encoder())
    assert isinstance(cost_of(blind, COSTS["memory"], HISTORY, seed=0), Learned)


def test_seconds_are_learned() -> None:
    cost = cost_of(SPACE, COSTS["train_seconds"], HISTORY, seed=0)
    assert isinstance(cost, Learned)
    assert cost.logarithm
    np.testing.assert_allclose(losses(cost), [measured(one, SPACE).train_seconds for one in NEW], rtol=0.08)


def test_with_nothing_measured_every_configuration_costs_the_same() -> None:
    assert losses(Learned.of(SPACE, COSTS["train_seconds"], History(), seed=0)).tolist() == [1.0] * len(NEW)
    one = history_of(SEEN[:1], SPACE)
    alone = Learned.of(SPACE, COSTS["train_seconds"], one, seed=0)
    assert set(losses(alone)) == {measured(SEEN[0], SPACE).train_seconds}


def test_a_cost_that_cannot_be_fitted_is_constant_and_said_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SurrogateError("singular")

    monkeypatch.setattr(costs, "fit", refuse)
    with caplog.at_level(logging.WARNING):
        cost = Learned.of(SPACE, COSTS["train_seconds"], HISTORY, seed=0)
    assert len(set(losses(cost))) == 1
    assert "no surrogate for train_seconds, taken as constant: singular" in caplog.text
