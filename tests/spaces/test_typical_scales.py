import math

import numpy as np
import pytest

from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from tests.search.support import encoder


def scales_of(definition: dict[str, object]) -> dict[str, float]:
    space = SearchSpace.bind(SpaceDefinition.from_mapping(definition), encoder())
    return dict(zip(space.feature_names, space.lengthscales, strict=True))


LORA = {"layers": "subset", "lora": {"rank": "choice(0, 2, 8)"}}


def test_there_is_one_for_every_feature() -> None:
    space = SearchSpace.bind(SpaceDefinition.from_mapping({**LORA, "learning_rate": "log(1e-4, 1e-2)"}), encoder())
    (drawn,) = space.sample(np.random.default_rng(0), 1)
    assert space.lengthscales.shape == space.features(drawn).shape
    assert (space.lengthscales > 0).all()


@pytest.mark.parametrize("spelled", ["log(1e-4, 1e-2)", "choice(1e-4, 1e-3, 1e-2)"])
def test_a_learning_rate_counts_by_factors_whatever_its_range(spelled: str) -> None:
    assert scales_of({**LORA, "learning_rate": spelled})["learning_rate"] == pytest.approx(1 / math.log(100))


def test_the_rate_of_a_method_is_one_too() -> None:
    scales = scales_of({"layers": "subset", "lora": {"rank": 4, "learning_rate": "log(1e-4, 1e-3)"}})
    assert scales["lora.learning_rate"] == pytest.approx(1 / math.log(10))


def test_a_rate_in_a_narrow_range_matters_little() -> None:
    assert scales_of({**LORA, "learning_rate": "log(1e-3, 1.05e-3)"})["learning_rate"] == 10.0


def test_the_more_of_the_others_the_less_each_matters() -> None:
    few = scales_of({**LORA, "learning_rate": "log(1e-4, 1e-2)"})
    many = scales_of({**LORA, "serial_adapter": {"bottleneck": "choice(0, 4)"}, "learning_rate": "log(1e-4, 1e-2)"})
    assert many["lora.rank"] > few["lora.rank"] > few["log(parameters)"] > few["learning_rate"]
    assert few["lora.rank"] == pytest.approx(1.5 * math.sqrt(len(few) - 2))
