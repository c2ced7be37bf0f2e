"""Unit scales and the features of surrogate models."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft import spaces as language
from autopeft.spaces.canonical import configuration
from autopeft.spaces.domain import ScalarDomain
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import bind
from tests.spaces.twins import spaces

DOMAINS: list[ScalarDomain] = [
    language.choice(0, 1, 3, 6),
    language.choice("relu", "gelu"),
    language.int_(0, 9),
    language.int_(1, 700, log=True),
    language.int_(5, 3000),
    language.bool_(),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_every_level_survives_its_unit_and_bins_are_in_order(domain: ScalarDomain) -> None:
    levels = list(domain.levels or ())
    assert [domain.from_unit(domain.to_unit(level)) for level in levels] == levels
    swept = [domain.from_unit(unit) for unit in np.linspace(0, 1, 20_001)]
    assert list(dict.fromkeys(swept)) == [level for level in levels if level in swept]
    assert swept[0] == levels[0]
    assert swept[-1] == levels[-1]
    assert domain.from_unit(-3) == levels[0]
    assert domain.from_unit(3) == levels[-1]


@given(unit=st.floats(0, 1))
def test_reals_survive_their_unit_to_six_digits(unit: float) -> None:
    for domain in (language.real(-3, 7), language.log(1e-6, 0.3)):
        value = domain.from_unit(unit)
        assert domain.contains(value)
        assert domain.from_unit(domain.to_unit(value)) == value


def test_bins_of_a_choice_have_equal_width() -> None:
    units = np.linspace(0, 1, 9000, endpoint=False)
    counts = np.unique([language.choice(0, 4, 8).from_unit(unit) for unit in units], return_counts=True)[1]
    assert list(counts) == [3000, 3000, 3000]


@settings(max_examples=40, deadline=None)
@given(space=spaces(), seed=st.integers(0, 2**32))
def test_features_are_numbers_in_the_unit_interval(space: SearchSpace, seed: int) -> None:
    for network in space.sample(np.random.default_rng(seed), 5):
        features = space.features(network)
        assert features.shape == (len(space.feature_names),)
        assert ((features >= 0) & (features <= 1)).all()
        others = [other for other in space.neighbours(network) if other.adapted_layers == network.adapted_layers]
        assert all(not np.array_equal(features, space.features(other)) for other in others)


def test_an_absent_module_is_the_lowest_ordinal_and_the_mask_is_left_out_where_sizes_say_it() -> None:
    space = bind({"layers": "subset", "lora": {"rank": "per_layer(choice(0, 2, 4, 8))"}})
    assert space.feature_names == ("lora.rank[0]", "lora.rank[1]", "lora.rank[2]", "log(parameters)")
    features = space.features(configuration({"lora": {"rank": [0, 2, 8]}}, space.shape))
    assert features[:3] == pytest.approx([0, 1 / 3, 1])


def test_a_shared_size_keeps_the_mask() -> None:
    space = bind({"layers": "subset", "lora": {"rank": "choice(2, 4)"}})
    assert space.feature_names[:4] == ("layers[0]", "layers[1]", "layers[2]", "lora.rank")
    features = space.features(configuration({"lora": {"rank": 2, "layers": [1]}}, space.shape))
    assert features == pytest.approx([0, 1, 0, 0.5, 0])


def test_a_size_that_can_only_be_present_is_still_above_absent() -> None:
    space = bind({"layers": "subset", "lora": {"rank": "per_layer(int(1, 24))"}})
    features = space.features(configuration({"lora": {"rank": [1, 24], "layers": [0, 2]}}, space.shape))
    assert features[:3] == pytest.approx([1 / 8, 0, 1])


def test_sizes_with_very_many_levels_and_categories_are_features_too() -> None:
    space = bind(
        {
            "serial_adapter": {"bottleneck": "int(0, 9000)", "activation": "choice(relu, gelu, silu)"},
            "batch_size": "int(1, 9000)",
        }
    )
    source = {"serial_adapter": {"bottleneck": 9000, "activation": "gelu"}, "batch_size": 1}
    features = dict(zip(space.feature_names, space.features(configuration(source, space.shape)), strict=True))
    assert features["serial_adapter.bottleneck"] == 1
    assert features["serial_adapter.activation=gelu"] == 1
    assert features["serial_adapter.activation=relu"] == 0
    assert features["batch_size"] == 0
    assert features["log(parameters)"] == pytest.approx(1)


def test_inactive_dimensions_are_encoded_at_their_default() -> None:
    space = bind({"lora": {"rank": "choice(0, 4)", "alpha": "choice(1, 16, 64)"}, "prefix_tuning": {"length": 1}})
    vector = space.encode(configuration({"prefix_tuning": {"length": 1}}, space.shape))
    assert list(vector) == [0, 0.5]
