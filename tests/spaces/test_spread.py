"""Given values by group of layers, on models of any depth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import spaces
from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import bind


def only(space: SearchSpace) -> Configuration:
    assert space.size().configurations == 1
    (network,) = space.configurations()
    return network


@given(values=st.lists(st.integers(1, 9), min_size=1, max_size=6), n=st.integers(1, 40))
def test_each_value_has_a_run_of_layers_and_runs_differ_by_one_layer_at_most(values: list[int], n: int) -> None:
    spread = spaces.groups(*values)
    if len(values) > n:
        with pytest.raises(SpaceError, match=rf"{len(values)} groups of {n} layers \(use at most {n} groups\)"):
            spread.scopes(n)
        return
    scopes = spread.scopes(n)
    lengths = [scopes.count(group) for group in range(len(values))]
    assert list(scopes) == sorted(scopes)
    assert sum(lengths) == n
    assert max(lengths) - min(lengths) <= 1
    assert scopes == spaces.per_group(len(values), spaces.choice(1, 2)).scopes(n)


def test_given_values_are_one_network_without_a_dimension() -> None:
    space = bind({"lora": {"rank": "groups(1, 2, 4)", "alpha": "groups(8, 16)"}}, n_layers=7)
    (lora,) = only(space).methods
    assert space.dimensions == ()
    assert lora.column("rank") == (1, 1, 1, 2, 2, 4, 4)
    assert lora.column("alpha") == (8.0, 8.0, 8.0, 8.0, 16.0, 16.0, 16.0)
    assert space.contains(only(space))
    assert space.spell(only(space)) == {}
    assert len(space.encode(only(space))) == 0


def test_a_size_of_zero_leaves_the_group_out() -> None:
    (lora,) = only(bind({"lora": {"rank": "groups(0, 2, 0, 4)"}}, n_layers=8)).methods
    assert lora.layers == (2, 3, 6, 7)
    assert lora.column("rank") == (2, 2, 4, 4)


def test_targets_may_differ_by_group() -> None:
    space = bind({"lora": {"rank": 2, "targets": "groups(query, mlp)"}}, n_layers=4)
    (lora,) = only(space).methods
    query, mlp = ("attention.self.query",), ("intermediate.dense", "output.dense")
    assert lora.column("targets") == (query, query, mlp, mlp)
    assert space.contains(only(space))
    with pytest.raises(SpaceError, match=r"space\.lora\.targets: 'quary' is no target in layer 2"):
        bind({"lora": {"rank": 2, "targets": "groups(query, quary)"}}, n_layers=4)


def test_groups_run_over_the_layers_that_may_be_adapted() -> None:
    (lora,) = only(bind({"layers": [1, 2, 5], "lora": {"rank": "groups(2, 4, 6)"}}, n_layers=6)).methods
    assert (lora.layers, lora.column("rank")) == ((1, 2, 5), (2, 4, 6))


def test_a_mask_over_given_values_is_searched() -> None:
    space = bind({"layers": "subset", "lora": {"rank": "groups(0, 2, 4)"}}, n_layers=6)
    assert space.size().configurations == 2**4 - 1
    names = [name for name in space.feature_names if name.startswith("layers")]
    assert len(names) == 6
    drawn = space.sample(np.random.default_rng(0), 200)
    assert len(set(drawn)) == 15
    assert all(space.contains(network) for network in drawn)
    assert all(space.contains(other) for other in space.neighbours(drawn[0]))


def test_another_value_than_the_given_one_is_refused_with_the_given_one() -> None:
    space = bind({"lora": {"rank": "groups(2, 4)"}}, n_layers=4)
    other = configuration({"lora": {"rank": [2, 2, 2, 4]}}, space.shape)
    with pytest.raises(ConfigurationError, match=r"lora\.rank: 2 is not in this space \(it has only 4\)"):
        space.check(other)


def test_a_size_above_the_width_is_found_in_whichever_group_it_is() -> None:
    with pytest.raises(SpaceError, match=r"space\.lora\.rank: 48 is above the width 24 .* in layer 2"):
        bind({"lora": {"rank": "groups(2, 48)"}}, n_layers=4)


def test_conditions_do_not_compare_given_values() -> None:
    with pytest.raises(SpaceError, match=r"lora\.rank differs from layer to layer \(groups\(2, 4\)\)"):
        bind({"lora": {"rank": "groups(2, 4)"}, "prefix_tuning": {"length": 4, "when": "lora.rank > 2"}})
    space = bind({"lora": {"rank": "groups(0, 4)"}, "prefix_tuning": {"length": 4, "when": "lora"}}, n_layers=4)
    assert [setting.method for setting in only(space)] == ["lora", "prefix_tuning"]
