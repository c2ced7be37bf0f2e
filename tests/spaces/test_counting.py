"""Exact sizes and uniform sampling, against enumeration of every raw assignment."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from autopeft.errors import SpaceError
from autopeft.spaces import counting
from autopeft.spaces.counting import below
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import bind, shape
from tests.spaces.twins import every_network, spaces

TINY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@TINY
@given(space=spaces())
def test_the_size_is_the_number_of_networks_that_all_assignments_make(space: SearchSpace) -> None:
    networks = every_network(space)
    listed = list(space.configurations())
    assert space.size().configurations == len(networks)
    assert len(set(listed)) == len(listed)
    assert set(listed) == networks


@TINY
@given(space=spaces(limit=400), seed=st.integers(0, 2**32))
def test_samples_are_uniform_over_the_networks(space: SearchSpace, seed: int) -> None:
    networks = every_network(space)
    drawn = Counter(space.sample(np.random.default_rng(seed), 20 * len(networks)))
    assert set(drawn) <= networks
    observed = [drawn[network] for network in networks]
    assert len(networks) == 1 or stats.chisquare(observed).pvalue > 1e-9


@pytest.mark.parametrize(
    ("n_layers", "hidden", "size"), [(12, 768, 5_446_350), (24, 1024, 22_313_695_950), (6, 384, (10**3 - 1) * 63)]
)
def test_the_papers_space_has_the_papers_size(n_layers: int, hidden: int, size: int) -> None:
    space = SearchSpace.bind(SpaceDefinition.from_mapping("autopeft"), shape(n_layers, hidden=hidden))
    assert space.size().configurations == size


def test_continuous_dimensions_are_named_and_not_counted() -> None:
    space = bind({"lora": {"rank": "choice(0, 2)", "alpha": "log(1, 32)"}, "learning_rate": "log(1e-4, 1e-2)"})
    assert space.size().configurations == 1
    assert space.size().continuous == ("lora.alpha", "learning_rate")


def test_masked_layers_with_sizes_of_their_own_are_counted_once() -> None:
    space = bind({"layers": "subset", "lora": {"rank": "per_layer(choice(0, 2, 4))"}}, n_layers=10)
    assert space.size().configurations == 3**10 - 1


def test_ramps_that_agree_on_the_unmasked_layers_are_one_network() -> None:
    space = bind({"layers": "subset(max=1)", "lora": {"rank": "ramp(choice(1, 2, 4))"}}, n_layers=5)
    assert space.size().configurations == 5 * 3


def test_deep_models_with_every_kind_of_spread_are_counted_exactly() -> None:
    space = bind(
        {
            "layers": "subset(min=4)",
            "serial_adapter": {"bottleneck": "per_layer(choice(0, 8, 16))"},
            "parallel_adapter": {"bottleneck": "per_group(8, choice(0, 8, 16))"},
            "prefix_tuning": {"length": "choice(0, 4, 8)"},
            "lora": {"rank": "ramp(choice(2, 4, 8))", "targets": "subset(query, key, value)"},
        },
        n_layers=80,
    )
    assert space.size().configurations > 10**50
    assert space.contains(space.sample(np.random.default_rng(0), 1)[0])


def test_ramps_too_fine_to_count_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = "ramp(choice(0, 1, 2, 3, 4, 6, 8))"
    mapping = {"layers": "subset", "lora": {"rank": ramp}, "prefix_tuning": {"length": ramp}}
    monkeypatch.setattr(counting, "MAX_STATES", 20_000)
    with pytest.raises(SpaceError, match=r"more than 20000 states .* per_group"):
        bind(mapping, n_layers=12)


def test_a_space_without_any_network_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"holds no network at all.*above 0"):
        bind({"lora": {"rank": "choice(0)"}})


@given(limit=st.integers(1, 10**40), seed=st.integers(0, 2**32))
def test_large_uniform_numbers_stay_below_their_limit(limit: int, seed: int) -> None:
    assert 0 <= below(np.random.default_rng(seed), limit) < limit


def test_listing_a_continuous_space_is_refused() -> None:
    space = bind({"lora": {"rank": 2}, "learning_rate": "log(1e-4, 1e-2)"})
    with pytest.raises(SpaceError, match=r"learning_rate is continuous.*make it a choice"):
        space.configurations()
