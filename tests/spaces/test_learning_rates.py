"""Learning rates of a method's own: in spaces, in configurations, and what `auto` means."""

from itertools import pairwise

import numpy as np
import pytest

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces import choice, log
from autopeft.spaces.canonical import configuration, read_configuration
from autopeft.spaces.configuration import LEARNING_RATE
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.methods import METHODS
from autopeft.spaces.space import SearchSpace
from tests.spaces import builders
from tests.spaces.builders import bind

MIXED: dict[str, object] = {
    "lora": {"rank": "choice(0, 2)", "learning_rate": "log(1e-4, 5e-4)"},
    "ssf": {"enabled": "choice(0, 1)", "learning_rate": "log(1e-3, 5e-2)"},
    "learning_rate": "log(1e-4, 1e-2)",
}


@pytest.fixture
def mixed() -> SearchSpace:
    return bind(MIXED)


def test_every_method_draws_from_its_own_range(mixed: SearchSpace) -> None:
    for network in mixed.sample(np.random.default_rng(0), 200):
        for name, low, high in (("lora", 1e-4, 5e-4), ("ssf", 1e-3, 5e-2)):
            setting = network.method(name)
            assert setting is None or (setting.learning_rate is not None and low <= setting.learning_rate <= high)
        assert 1e-4 <= float(dict(network.training)["learning_rate"]) <= 1e-2


def test_the_rate_of_an_absent_method_is_inactive(mixed: SearchSpace) -> None:
    base = {"lora.rank": 0, "ssf.enabled": 1, "ssf.learning_rate": 5e-3, "learning_rate": 1e-3}
    one, other = (mixed.assemble(base | {"lora.learning_rate": rate}) for rate in (1e-4, 5e-4))
    assert one == other
    assert one.id == other.id
    assert mixed.spell(one) == base
    assert mixed.encode(one).shape == (5,)
    names = [row.name for row in mixed.dimensions]
    assert mixed.encode(one)[names.index("lora.learning_rate")] == pytest.approx(0.5, abs=1e-5)


def test_listed_rates_are_counted_only_where_the_method_is_present() -> None:
    space = bind(
        {
            "lora": {"rank": "choice(0, 2)", "learning_rate": "choice(1e-4, 2e-4, 4e-4)"},
            "serial_adapter": {"bottleneck": "choice(0, 8)"},
        }
    )
    assert space.size().configurations == len(list(space.configurations())) == 3 + 1 + 3
    assert space.size().continuous == ()


def test_continuous_rates_are_named_and_not_counted(mixed: SearchSpace) -> None:
    assert mixed.size().configurations == 3
    assert mixed.size().continuous == ("lora.learning_rate", "ssf.learning_rate", "learning_rate")


def test_encodings_are_inverted_and_neighbours_move_the_rate(mixed: SearchSpace) -> None:
    for network in mixed.sample(np.random.default_rng(1), 50):
        assert mixed.decode(mixed.encode(network)) == network
        assert mixed.assemble(mixed.spell(network)) == network
        assert read_configuration(network.to_json()) == network
        assert configuration(network.to_json(), mixed.shape) == network
        mixed.check(network)
    both = next(network for network in mixed.sample(np.random.default_rng(1), 50) if len(network.methods) == 2)
    moved = [row for row in mixed.neighbours(both) if row.method("lora") and row.method("ssf") == both.method("ssf")]
    rates = {row.method("lora").learning_rate for row in moved}  # type: ignore[union-attr]  # it is there
    assert len(rates) > 2


def test_a_higher_rate_is_a_higher_feature(mixed: SearchSpace) -> None:
    index = mixed.feature_names.index("ssf.learning_rate")
    values = {"lora.rank": 0, "ssf.enabled": 1, "learning_rate": 1e-3}
    features = [
        mixed.features(mixed.assemble(values | {"ssf.learning_rate": rate}))[index] for rate in (1e-3, 5e-3, 5e-2)
    ]
    assert features[0] == 0.0
    assert features[-1] == 1.0
    assert all(low < high for low, high in pairwise(features))


def test_a_rate_does_not_change_the_parameters(mixed: SearchSpace) -> None:
    values = {"lora.rank": 2, "ssf.enabled": 0, "learning_rate": 1e-3}
    counts = {mixed.parameters(mixed.assemble(values | {"lora.learning_rate": rate})) for rate in (1e-4, 5e-4)}
    assert len(counts) == 1


def test_text_and_objects_mean_the_same_and_come_back() -> None:
    objects = SpaceDefinition.from_mapping(
        {"lora": {"rank": choice(0, 2), "learning_rate": log(1e-4, 5e-4)}, "ssf": {"enabled": 1, "learning_rate": 5e-3}}
    )
    text = SpaceDefinition.from_mapping(
        {
            "lora": {"rank": "choice(0, 2)", "learning_rate": "log(1e-4, 5e-4)"},
            "ssf": {"enabled": 1, "learning_rate": "5e-3"},
        }
    )
    assert objects == text == SpaceDefinition.from_mapping(objects.to_mapping())
    assert objects.to_mapping()["ssf"] == {"enabled": 1, "learning_rate": 0.005}


def test_auto_gives_every_method_its_recommended_range() -> None:
    written = {"lora": {"rank": 2, "learning_rate": 1e-3}, "ssf": {"enabled": 1}, "prefix_tuning": {"length": 2}}
    definition = SpaceDefinition.from_mapping({**written, "learning_rate": "auto"})
    assert definition.to_mapping() == {
        "lora": {"rank": 2, "learning_rate": 0.001},
        "prefix_tuning": {"length": 2, "learning_rate": "log(0.01, 0.3)"},
        "ssf": {"enabled": 1, "learning_rate": "log(0.001, 0.05)"},
    }
    alone = SpaceDefinition.from_mapping({"ssf": {"enabled": 1, "learning_rate": "auto"}, "learning_rate": 1e-3})
    assert alone.to_mapping()["ssf"] == {"enabled": 1, "learning_rate": "log(0.001, 0.05)"}
    assert alone.to_mapping()["learning_rate"] == 0.001


def test_auto_goes_over_a_preset_and_null_takes_a_rate_away() -> None:
    auto = SpaceDefinition.from_mapping({"preset": "mola", "learning_rate": "auto"}).to_mapping()
    assert "learning_rate" not in auto
    assert auto["mola"]["learning_rate"] == "log(0.0001, 0.001)"  # type: ignore[index]  # a mapping
    prefix = SpaceDefinition.from_mapping({"preset": "llm-adapters-prefix"}).to_mapping()
    assert prefix["prefix_tuning"] == {"length": 10, "learning_rate": 0.03}
    without = SpaceDefinition.from_mapping({"preset": "llm-adapters-prefix", "prefix_tuning": {"learning_rate": None}})
    assert without.to_mapping()["prefix_tuning"] == {"length": 10}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_recommended_range_is_a_range_that_a_space_takes(name: str) -> None:
    method = METHODS[name]
    assert not {LEARNING_RATE, "layers", "when"} & {field.name for field in method.fields}
    rates = method.learning_rates
    definition = SpaceDefinition.from_mapping({name: {method.size_field.name: 1, "learning_rate": "auto"}})
    assert definition.to_mapping()[name]["learning_rate"] == f"log({rates.low}, {rates.high})"  # type: ignore[index]  # a mapping
    assert 1e-6 < rates.low < rates.high < 1


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"lora": {"rank": 2, "learning_rate": "per_layer(log(1e-4, 1e-3))"}},
            r"space\.lora\.learning_rate: got per_layer\(log\(0\.0001, 0\.001\)\) \(a method has one rate on all its "
            r"layers: write log\(0\.0001, 0\.001\)\)",
        ),
        (
            {"lora": {"rank": 2, "learning_rate": 0}},
            r"space\.lora\.learning_rate: got 0\.0, a value outside 1e-12 to 10",
        ),
        ({"lora": {"rank": 2, "learning_rate": "fast"}}, r"space\.lora\.learning_rate: got 'fast'"),
        ({"lora": {"rank": 2, "learning_rates": 1e-3}}, r"unknown key 'learning_rates'.*did you mean 'learning_rate'"),
        (
            {"lora": {"rank": 2}, "ssf": {"enabled": 1, "when": "lora.learning_rate > 1e-3"}},
            r"'lora\.learning_rate' is no dimension of this space",
        ),
        (
            {
                "lora": {"rank": 2, "learning_rate": "log(1e-4, 1e-3)"},
                "ssf": {"enabled": 1, "when": "lora.learning_rate > 1"},
            },
            r"lora\.learning_rate has no single levels",
        ),
    ],
)
def test_a_rate_that_means_nothing_is_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        SpaceDefinition.from_mapping(mapping)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"lora": {"rank": [2, 4, 2], "learning_rate": [1e-3, 1e-4, 1e-3]}},
            r"lora\.learning_rate: got \[0\.001, 0\.0001, 0\.001\] \(a method has one rate on all its layers\)",
        ),
        (
            {"lora": {"rank": 2, "learning_rate": "auto"}},
            r"lora\.learning_rate: got 'auto', but learning_rate is of kind real",
        ),
        ({"lora": {"rank": 2, "learning_rate": -1}}, r"lora\.learning_rate: got -1\.0, a value outside"),
    ],
)
def test_a_wrong_rate_in_a_configuration_is_refused(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        configuration(source, builders.shape(3, hidden=24, heads=2))


def test_a_space_refuses_a_rate_that_it_does_not_decide_and_misses_one_that_it_does(mixed: SearchSpace) -> None:
    plain = bind({"lora": {"rank": "choice(0, 2)"}})
    with pytest.raises(ConfigurationError, match=r"lora\.learning_rate: not decided by this space"):
        plain.check(configuration({"lora": {"rank": 2, "learning_rate": 1e-3}}, plain.shape))
    with pytest.raises(ConfigurationError, match=r"lora\.learning_rate: no value \(this space decides it"):
        mixed.check(configuration({"lora": {"rank": 2}, "learning_rate": 1e-3}, mixed.shape))
    with pytest.raises(ConfigurationError, match=r"lora\.learning_rate: 0\.1 is not in this space"):
        mixed.check(configuration({"lora": {"rank": 2, "learning_rate": 0.1}, "learning_rate": 1e-3}, mixed.shape))


def test_equal_spellings_of_a_rate_are_one_configuration() -> None:
    shape = builders.shape(3, hidden=24, heads=2)
    spelled = [
        configuration({"lora": {"rank": 2, "learning_rate": rate}}, shape) for rate in (1e-3, "1e-3", 0.0010000001)
    ]
    assert len({one.id for one in spelled}) == 1
    assert spelled[0].id != configuration({"lora": {"rank": 2}}, shape).id
