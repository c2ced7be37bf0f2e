"""One-exchange neighbours."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.spaces.canonical import configuration
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import bind
from tests.spaces.twins import spaces

SOME = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@SOME
@given(space=spaces(), seed=st.integers(0, 2**32))
def test_neighbours_are_distinct_networks_of_the_space_other_than_itself(space: SearchSpace, seed: int) -> None:
    network = space.sample(np.random.default_rng(seed), 1)[0]
    others = space.neighbours(network)
    assert network not in others
    assert len(set(others)) == len(others)
    assert others == space.neighbours(network)
    for other in others:
        space.check(other)


@SOME
@given(seed=st.integers(0, 2**32))
def test_without_sub_dimensions_being_neighbours_goes_both_ways(seed: int) -> None:
    space = bind("autopeft", n_layers=4, hidden=24)
    network = space.sample(np.random.default_rng(seed), 1)[0]
    assert all(network in space.neighbours(other) for other in space.neighbours(network))


def test_every_network_is_reached_from_every_other() -> None:
    space = bind({"layers": "subset", "lora": {"rank": "per_layer(choice(0, 1, 2))", "targets": "subset(query, key)"}})
    start = next(iter(space.configurations()))
    reached, fresh = {start}, [start]
    while fresh:
        fresh = [other for network in fresh for other in space.neighbours(network) if other not in reached]
        reached |= set(fresh)
        fresh = list(dict.fromkeys(fresh))
    assert reached == set(space.configurations())


def steps(space: SearchSpace, source: dict[str, object], name: str) -> set[object]:
    """Values of dimension `name` that differ in the neighbours of `source`."""
    network = configuration(source, space.shape)
    here = space.spell(network)[name]
    return {space.spell(other).get(name) for other in space.neighbours(network)} - {here, None}


@pytest.mark.parametrize(
    ("size", "value", "reached"),
    [
        ("choice(1, 2, 8, 20)", 2, {1, 8}),
        ("choice(8, 2, 0)", 2, {8}),
        ("int(1, 6)", 6, {5}),
        ("int(1, 24)", 12, {5, 10, 11, 13, 14, 19}),
        ("int(1, 24, log)", 4, {1, 3, 5, 6, 11}),
    ],
)
def test_ordinal_dimensions_step_to_adjacent_levels_and_fine_ones_further(
    size: str, value: int, reached: set[int]
) -> None:
    assert steps(bind({"lora": {"rank": size}}), {"lora": {"rank": value}}, "lora.rank") == reached


def test_categories_go_to_every_other_word_and_reals_a_tenth_and_three_tenths() -> None:
    space = bind(
        {"serial_adapter": {"bottleneck": 2, "activation": "choice(relu, gelu, silu)", "scale": "real(0.5, 10.5)"}}
    )
    source = {"serial_adapter": {"bottleneck": 2, "activation": "gelu", "scale": 2.5}}
    assert steps(space, source, "serial_adapter.activation") == {"relu", "silu"}
    assert steps(space, source, "serial_adapter.scale") == {0.5, 1.5, 3.5, 5.5}


def test_switching_a_module_on_gives_it_default_settings() -> None:
    space = bind({"prefix_tuning": {"length": 1}, "lora": {"rank": "choice(0, 4, 8)", "alpha": "log(1, 64)"}})
    others = space.neighbours(configuration({"prefix_tuning": {"length": 1}}, space.shape))
    (lora,) = [other.method("lora") for other in others]
    assert lora is not None
    assert lora.column("rank") == (4, 4, 4)
    assert lora.column("alpha") == (16.0, 16.0, 16.0)


def test_switching_a_layer_on_tries_each_method_at_its_smallest() -> None:
    space = bind(
        {
            "layers": "subset",
            "lora": {"rank": "per_layer(choice(0, 4, 8))"},
            "prefix_tuning": {"length": "per_layer(choice(0, 1, 2))"},
        }
    )
    network = configuration({"lora": {"rank": 8, "layers": [0]}}, space.shape)
    grown = [other for other in space.neighbours(network) if other.adapted_layers == (0, 1)]
    assert [[setting.at(1) for setting in other if setting.at(1)] for other in grown] == [
        [{"alpha": 16.0, "dropout": 0.0, "rank": 4, "targets": ("attention.self.query", "attention.self.value")}],
        [{"length": 1}],
    ]
