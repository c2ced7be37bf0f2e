"""The bound space: spelling, encoding, sampling, membership, constraints."""

import json
import pickle
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import bind, shape
from tests.spaces.twins import spaces

SOME = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
EVERYTHING = {
    "layers": "subset",
    "serial_adapter": {"bottleneck": "choice(0, 2, 4)", "activation": "choice(relu, gelu, tanh)"},
    "parallel_adapter": {"bottleneck": "per_group(2, int(0, 20))", "scale": "real(0.5, 4)"},
    "lora": {"rank": "per_layer(choice(0, 2, 4))", "targets": "subset(query, key, value)", "alpha": "log(1, 64)"},
    "prefix_tuning": {"length": "choice(0, 1, 2)", "when": "serial_adapter.bottleneck > 2"},
    "learning_rate": "log(1e-4, 1e-2)",
    "batch_size": "choice(16, 32)",
}


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return bind(EVERYTHING, n_layers=4)


@SOME
@given(space=spaces(), seed=st.integers(0, 2**32))
def test_every_spelling_and_encoding_gives_the_same_network_back(space: SearchSpace, seed: int) -> None:
    for network in space.sample(np.random.default_rng(seed), 5):
        assert space.assemble(space.spell(network)) == network
        vector = space.encode(network)
        assert ((vector >= 0) & (vector <= 1)).all()
        assert space.decode(vector) == network
        assert configuration(json.loads(json.dumps(network.to_json())), space.shape) == network
        space.check(network)


@SOME
@given(seed=st.integers(0, 2**32))
def test_continuous_and_conditional_dimensions_survive_every_spelling(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for network in space.sample(rng, 5):
        assert space.assemble(space.spell(network)) == network
        assert space.decode(space.encode(network)) == network
        assert configuration(network.to_json(), space.shape) == network
        assert (network.method("prefix_tuning") is None) or space.spell(network)["serial_adapter.bottleneck"] == 4


@SOME
@given(seed=st.integers(0, 2**32))
def test_any_vector_is_a_network_of_the_space_or_says_that_nothing_is_adapted(space: SearchSpace, seed: int) -> None:
    vector = np.random.default_rng(seed).uniform(-0.2, 1.2, len(space.dimensions))
    try:
        network = space.decode(vector)
    except ConfigurationError as error:
        assert re.search("nothing is adapted|0 chosen of", str(error))  # noqa: PT017
    else:
        assert space.contains(network)


def test_dimensions_are_named_by_method_field_and_place(space: SearchSpace) -> None:
    names = [dimension.name for dimension in space.dimensions]
    assert names[:4] == ["layers[0]", "layers[1]", "layers[2]", "layers[3]"]
    assert {"serial_adapter.bottleneck", "parallel_adapter.bottleneck[0-1]", "lora.rank[3]"} <= set(names)
    assert {"lora.targets[query]", "learning_rate", "batch_size"} <= set(names)


def test_dimensions_say_what_a_sampler_needs(space: SearchSpace) -> None:
    rows = {dimension.name: dimension for dimension in space.dimensions}
    assert [rows[name].kind for name in ("layers[0]", "serial_adapter.activation", "lora.rank[0]")] == [
        "flag",
        "categorical",
        "ordinal",
    ]
    assert rows["parallel_adapter.bottleneck[0-1]"].kind == "integer"
    assert rows["learning_rate"].kind == "real"
    assert rows["learning_rate"].log
    assert not rows["parallel_adapter.scale"].log
    assert rows["lora.rank[0]"].levels == (0, 2, 4)


def test_ramps_and_single_layer_groups_have_short_names() -> None:
    space = bind({"lora": {"rank": "ramp(choice(1, 2))"}, "prefix_tuning": {"length": "per_group(2, choice(0, 1))"}})
    assert [row.name for row in space.dimensions] == [
        "lora.rank[first]",
        "lora.rank[last]",
        "prefix_tuning.length[0-1]",
        "prefix_tuning.length[2]",
    ]


def test_an_absent_module_has_no_active_dimensions(space: SearchSpace) -> None:
    network = space.assemble(_lora(space, rank=0) | {"serial_adapter.bottleneck": 4})
    active = space.spell(network)
    assert not [name for name in active if name.startswith("lora.targets") or name == "lora.alpha"]
    assert "serial_adapter.activation" in active


def _lora(space: SearchSpace, *, rank: int) -> dict[str, object]:
    values: dict[str, object] = {row.name: row.default for row in space.dimensions}
    return values | {f"lora.rank[{layer}]": rank for layer in range(4)} | {"lora.targets[query]": True}


def test_two_spellings_of_one_network_are_one_configuration(space: SearchSpace) -> None:
    values = _lora(space, rank=2)
    masked = space.assemble(values | {"layers[1]": False})
    absent = space.assemble(values | {"lora.rank[1]": 0, "parallel_adapter.scale": 3.0})
    assert masked == absent
    assert masked.id == absent.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora.rank[0]": 3}, r"lora\.rank\[0\]: 3 is not in choice\(0, 2, 4\)"),
        ({"learning_rate": "x"}, r"learning_rate: 'x' is not in log"),
        ({"batch_size": True}, r"batch_size: True is not in choice\(16, 32\)"),
        ({"lora.rnk[0]": 2}, r"lora\.rnk\[0\]: no such dimension \(did you mean 'lora\.rank\[0\]'"),
        ({"lora.targets[query]": False}, r"lora\.targets: 0 chosen of query, key, value \(choose at least 1"),
    ],
)
def test_wrong_values_are_named(space: SearchSpace, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        space.assemble(_lora(space, rank=2) | change)


def test_a_missing_active_value_is_named(space: SearchSpace) -> None:
    values = _lora(space, rank=2)
    del values["learning_rate"]
    with pytest.raises(ConfigurationError, match="learning_rate: no value, though it is active"):
        space.assemble(values)


def test_nothing_adapted_is_no_configuration(space: SearchSpace) -> None:
    with pytest.raises(ConfigurationError, match="nothing is adapted: every method is absent on every layer"):
        space.assemble(_lora(space, rank=0))


def test_too_many_adapted_layers_are_refused() -> None:
    space = bind({"layers": "subset(min=1, max=1)", "lora": {"rank": 2}})
    with pytest.raises(ConfigurationError, match=r"layers: 3 are adapted, outside subset\(max=1\)"):
        space.assemble({"layers[0]": True, "layers[1]": True, "layers[2]": True})


def test_a_vector_of_another_length_is_refused(space: SearchSpace) -> None:
    with pytest.raises(ConfigurationError, match=r"a vector of shape \(3,\) for \d+ dimensions"):
        space.decode(np.zeros(3))


FIXED = {"layers": [0, 1], "lora": {"rank": "per_group(1, choice(0, 2))", "targets": "query"}, "batch_size": 16}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"prefix_tuning": {"length": 1}, "batch_size": 16}, "prefix_tuning: not in this space, which has lora"),
        ({"lora": {"rank": 2, "targets": "query"}, "batch_size": 16}, "lora: layer 2 is not adapted in this space"),
        (
            {"lora": {"rank": [2, 0], "targets": "query", "layers": [0, 1]}, "batch_size": 16},
            r"lora\.rank\[0-1\]: 2 on one layer, 0 on another",
        ),
        (
            {"lora": {"rank": 3, "targets": "query", "layers": [0, 1]}, "batch_size": 16},
            r"lora\.rank: 3 is not in this space \(it has choice\(0, 2\)\)",
        ),
        (
            {"lora": {"rank": 2, "layers": [0, 1]}, "batch_size": 16},
            r"lora\.targets: \['attention.self.query', 'attention.self.value'\] is not in this space",
        ),
        (
            {"lora": {"rank": 2, "targets": "query", "layers": [0, 1], "alpha": 8}, "batch_size": 16},
            r"lora\.alpha: 8\.0 is not in this space \(it has only 16\.0\)",
        ),
        (
            {"lora": {"rank": 2, "targets": "query", "layers": [0, 1]}},
            "batch_size: not given, though this space decides",
        ),
        (
            {"lora": {"rank": 2, "targets": "query", "layers": [0, 1]}, "batch_size": 16, "learning_rate": 0.1},
            "learning_rate: not decided by this space",
        ),
        (
            {"lora": {"rank": 2, "targets": "query", "layers": [0, 1]}, "batch_size": 32},
            "batch_size: 32 is not in this space",
        ),
    ],
)
def test_a_configuration_of_another_space_is_refused_with_the_reason(mapping: dict[str, object], message: str) -> None:
    space = bind(FIXED)
    network = configuration(mapping, space.shape)
    assert not space.contains(network)
    with pytest.raises(ConfigurationError, match=message):
        space.check(network)


def test_a_false_condition_and_a_missed_ramp_are_reasons() -> None:
    space = bind(
        {"serial_adapter": {"bottleneck": "choice(1, 2)"}, "lora": {"rank": 2, "when": "serial_adapter.bottleneck > 1"}}
    )
    network = configuration({"serial_adapter": {"bottleneck": 1}, "lora": {"rank": 2}}, space.shape)
    with pytest.raises(ConfigurationError, match=r"lora: present, though its condition .* is false"):
        space.check(network)
    ramped = bind({"lora": {"rank": "ramp(choice(1, 2, 4))"}})
    with pytest.raises(ConfigurationError, match=r"lora\.rank: \[1, 4, 1\] lie on no ramp of 1, 2, 4"):
        ramped.check(configuration({"lora": {"rank": [1, 4, 1]}}, ramped.shape))


def test_a_method_that_the_space_cannot_switch_off_must_be_there() -> None:
    space = bind({"serial_adapter": {"bottleneck": 2}, "lora": {"rank": "choice(0, 2)"}})
    with pytest.raises(ConfigurationError, match=r"serial_adapter\.bottleneck: 0 is not in this space"):
        space.check(configuration({"lora": {"rank": 2}}, space.shape))


def test_columns_that_were_left_out_are_refused(space: SearchSpace) -> None:
    network = space.sample(np.random.default_rng(0), 1)[0]
    setting = network.methods[0]
    cut = type(setting)(method=setting.method, layers=setting.layers, fields=setting.fields[1:])
    kept = Configuration(methods=(cut, *network.methods[1:]), training=network.training)
    with pytest.raises(ConfigurationError, match="no value"):
        space.check(kept)


def test_a_configuration_in_another_order_is_no_canonical_one() -> None:
    space = bind({"layers": "subset", "lora": {"rank": 2}})
    setting = configuration({"lora": {"rank": 2, "layers": [0, 2]}}, space.shape).methods[0]
    turned = type(setting)(method="lora", layers=(2, 0), fields=setting.fields)
    with pytest.raises(ConfigurationError, match=r"no network of this space: its dimensions spell .*canonical"):
        space.check(Configuration(methods=(turned,), training=()))


def test_samples_are_the_same_for_the_same_generator(space: SearchSpace) -> None:
    first, second = (space.sample(np.random.default_rng(3), 20) for _ in range(2))
    assert first == second


def test_constraints_hold_for_samples_and_neighbours() -> None:
    space = bind(EVERYTHING, n_layers=4, constraints=["parameters <= 2k", "parameters > 100"])
    assert 0 < space.acceptance(np.random.default_rng(1), 200) < 1
    for network in space.sample(np.random.default_rng(0), 20):
        assert 100 < space.parameters(network) <= 2000
        assert all(space.admits(other) for other in space.neighbours(network))


def test_a_rare_admitted_region_is_reached_by_repair() -> None:
    definition = SpaceDefinition.from_mapping("autopeft")
    space = SearchSpace.bind(definition, shape(), constraints=["parameters <= 0.002%"])
    assert space.acceptance(np.random.default_rng(0), 500) < 0.02
    assert all(space.parameters(network) <= 2200 for network in space.sample(np.random.default_rng(0), 10))


def test_quantities_of_the_caller_are_constraints_too() -> None:
    definition = SpaceDefinition.from_mapping(
        {"lora": {"rank": "choice(0, 1, 2)"}, "prefix_tuning": {"length": "int(0, 3)"}}
    )
    space = SearchSpace.bind(definition, shape(2), constraints=["memory < 2 KiB"], quantities={"memory": n_methods_kib})
    assert all(len(network.methods) == 1 for network in space.sample(np.random.default_rng(0), 30))
    network = space.sample(np.random.default_rng(0), 1)[0]
    assert space.predicted(network) == {"parameters": space.parameters(network), "memory": 1024}
    assert pickle.loads(pickle.dumps(space)).predicted(network) == space.predicted(network)


def n_methods_kib(network: Configuration) -> float:
    return 1024.0 * len(network.methods)


@pytest.mark.parametrize(("limit", "closest"), [("parameters <= 10", "96"), ("parameters >= 1M", "9216")])
def test_a_constraint_that_excludes_everything_is_refused_with_the_closest_value(limit: str, closest: str) -> None:
    with pytest.raises(
        SpaceError, match=rf"no configuration with {limit} was found; the closest has {closest} against"
    ):
        bind({"layers": "subset", "lora": {"rank": "choice(0, 1, 8, 24)"}}, n_layers=4, constraints=[limit])


def test_repair_says_so_when_no_start_reaches_an_admitted_configuration() -> None:
    bound = bind({"lora": {"rank": "choice(0, 1, 8)"}})
    space = SearchSpace(bound.definition, bound.shape, constraints=("parameters <= 10",), quantities={}, settings={})
    with pytest.raises(SpaceError, match=r"no admitted configuration was reached from any start .loosen"):
        space.sample(np.random.default_rng(0), 1)


def test_check_names_the_broken_constraint() -> None:
    space = bind({"lora": {"rank": "choice(1, 8)"}}, constraints=["parameters <= 1000"])
    with pytest.raises(ConfigurationError, match=r"parameters is 2304, against parameters <= 1000"):
        space.check(configuration({"lora": {"rank": 8}}, space.shape))


def test_a_space_survives_pickling(space: SearchSpace) -> None:
    again = pickle.loads(pickle.dumps(space))
    assert again.fingerprint() == space.fingerprint()
    assert again.sample(np.random.default_rng(5), 5) == space.sample(np.random.default_rng(5), 5)


def test_fingerprints_differ_with_definition_shape_and_constraints(space: SearchSpace) -> None:
    others = [
        bind("autopeft"),
        bind(EVERYTHING, n_layers=5),
        bind(EVERYTHING, n_layers=4, constraints=["parameters < 2%"]),
    ]
    assert len({space.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_bare_layers_of_a_model_without_any_are_refused() -> None:
    with pytest.raises(SpaceError, match=r"space\.layers: this bert model has no layers"):
        bind("autopeft", n_layers=0)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"layers": [0, 9], "lora": {"rank": 2}}, r"space\.layers: layer 9 of a model with layers 0 to 2"),
        ({"layers": "subset(max=7)", "lora": {"rank": 2}}, r"space\.layers: subset\(max=7\) on a model of 3 layers"),
        (
            {"lora": {"rank": "choice(8, 512)"}},
            r"space\.lora\.rank: 512 is above the width 24 of attention\.self\.query",
        ),
        ({"lora": {"rank": "int(1, 64)"}}, r"space\.lora\.rank: 25 is above the width 24"),
        ({"lora": {"rank": "per_group(5, choice(0, 2))"}}, r"space\.lora\.rank: per_group.*: 5 groups of 3 layers"),
        (
            {"lora": {"rank": 2, "targets": "subset(qurey)"}},
            r"space\.lora\.targets: 'qurey' is no target .*attention\.self\.query.*did you mean 'query'",
        ),
        (
            {"lora": {"rank": 2, "targets": "subset(attention, query)"}},
            r"'query' and 'attention' both hold attention\.self\.query",
        ),
        ({"lora": {"rank": 2, "targets": "choice(query, attention.self.query)"}}, "are the same sites"),
    ],
)
def test_what_the_model_cannot_have_is_refused_when_bound(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        bind(mapping)
