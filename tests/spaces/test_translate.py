"""Configurations carried from one model's space to another's."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from autopeft.errors import SpaceError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.carry import WIDTHS, counterparts
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.masks import AbstractMask, bind_mask
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.snap import nearest_set
from autopeft.spaces.space import SearchSpace
from autopeft.spaces.translate import Translated, translate
from tests.spaces.builders import ENCODER, FUSED, GATED, bind, shape
from tests.spaces.twins import mappings, spaces

SOME = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
WIDE = {
    "layers": "subset",
    "lora": {
        "rank": "per_layer(int(0, 24))",
        "targets": "per_layer(subset(query-key-value, attention_output, mlp_up, mlp_down))",
    },
    "serial_adapter": {"bottleneck": "per_layer(int(0, 24))"},
}


def space_on(model: ModelShape, mapping: str | Mapping[str, object], *constraints: str) -> SearchSpace:
    return SearchSpace.bind(SpaceDefinition.from_mapping(mapping), model, constraints=constraints)


def carried(mapping: Mapping[str, object], source: ModelShape, target: SearchSpace) -> Translated:
    return translate(configuration(mapping, source), source=source, target=target)


@SOME
@given(space=spaces(), seed=st.integers(0, 2**32))
def test_a_configuration_of_the_target_space_comes_back_unchanged(space: SearchSpace, seed: int) -> None:
    for network in space.sample(np.random.default_rng(seed), 5):
        found = translate(network, source=space.shape, target=space)
        assert found == Translated(configuration=network, exact=True, notes=())


@SOME
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_the_result_is_in_the_target_space_whatever_both_are(data: st.DataObject, seed: int) -> None:
    source = data.draw(spaces())
    sites = data.draw(st.sampled_from([ENCODER, FUSED, GATED]))
    model = shape(data.draw(st.integers(2, 7)), hidden=data.draw(st.sampled_from([12, 24, 48])), sites=sites, heads=2)
    try:
        target = space_on(model, data.draw(mappings()))
    except SpaceError:
        assume(False)
        raise
    for network in source.sample(np.random.default_rng(seed), 4):
        found = translate(network, source=source.shape, target=target)
        assert found.exact is (found.configuration is not None and not found.notes)
        assert found.notes or found.exact
        if found.configuration is not None:
            target.check(found.configuration)
            assert found.configuration.id == target.assemble(target.spell(found.configuration)).id
            again = translate(found.configuration, source=model, target=target)
            assert again.configuration == found.configuration
            assert again.exact


@SOME
@given(seed=st.integers(0, 2**32), limit=st.sampled_from(["0.01%", "0.02%", "0.05%"]))
def test_constraints_of_the_target_hold(seed: int, limit: str) -> None:
    target = space_on(shape(4, hidden=96, heads=2), WIDE, f"parameters <= {limit}")
    source = bind(WIDE, n_layers=6)
    for network in source.sample(np.random.default_rng(seed), 2):
        found = translate(network, source=source.shape, target=target)
        assert found.configuration is None or target.contains(found.configuration)


@given(st.integers(1, 40), st.integers(1, 40))
def test_deeper_layers_take_after_deeper_layers(n_from: int, n_to: int) -> None:
    taken = counterparts(shape(n_from), shape(n_to))
    assert list(taken) == sorted(taken)
    assert taken[0] == 0
    assert n_to == 1 or taken[-1] == n_from - 1
    for layer, origin in enumerate(taken):
        assert 2 * abs(origin * max(n_to - 1, 1) - layer * (n_from - 1)) <= max(n_to - 1, 1)
    assert n_from != n_to or taken == tuple(range(n_to))


@SOME
@given(ranks=st.lists(st.integers(1, 24), min_size=1, max_size=9), n_to=st.integers(1, 12))
def test_sizes_that_grow_with_depth_still_do_on_another_depth(ranks: list[int], n_to: int) -> None:
    target = bind({"lora": {"rank": "per_layer(choice(0, 1, 2, 4, 8, 16))"}}, n_layers=n_to)
    source = shape(len(ranks), hidden=24, heads=2)
    found = carried({"lora": {"rank": sorted(ranks)}}, source, target).configuration
    assert found is not None
    column = found.methods[0].column("rank")
    assert len(column) == n_to
    assert list(column) == sorted(column)  # type: ignore[type-var]  # whole numbers


def test_an_encoder_and_a_decoder_are_carried_apart() -> None:
    both = replace(shape(5), decoder_layers=3)
    assert counterparts(both, both) == (0, 1, 2, 3, 4)
    assert counterparts(both, shape(4)) == (0, 0, 1, 1)
    assert counterparts(shape(4), both) == (0, 3, 0, 2, 3)


def test_widths_keep_their_share_and_counts_their_number() -> None:
    target = space_on(
        shape(2, hidden=768),
        {
            "lora": {"rank": "int(0, 64)"},
            "prefix_tuning": {"length": "choice(0, 1, 8, 64)"},
            "serial_adapter": {"bottleneck": "choice(0, 16, 50)"},
        },
    )
    mapping = {"lora": {"rank": 8}, "prefix_tuning": {"length": 8}, "serial_adapter": {"bottleneck": 12}}
    found = carried(mapping, shape(2, hidden=384), target)
    assert found.configuration is not None
    assert [setting.at(0) for setting in found.configuration] == [
        {"alpha": 16.0, "dropout": 0.0, "rank": 16, "targets": ("attention.self.query", "attention.self.value")},
        found.configuration.methods[1].at(0),
        found.configuration.methods[2].at(0),
    ]
    assert found.configuration.id == configuration(found.configuration.to_json(), target.shape).id
    assert found.configuration.methods[1].column("length") == (8, 8)
    assert found.configuration.methods[2].column("bottleneck") == (16, 16)
    assert not found.exact
    assert "sizes: widths of 384 scaled to 768" in found.notes
    assert "serial_adapter.bottleneck: 24 became 16 on layer 0 and on 1 more layers" in found.notes


def test_every_size_either_is_a_width_or_counts_something() -> None:
    counted = {"enabled", "experts", "frequencies", "length", "numbers", "tokens"}
    sizes = {method.size_field.name for method in METHODS.values()}
    assert sizes - counted <= WIDTHS
    assert not counted & WIDTHS


def test_sites_are_carried_by_their_role_and_a_fused_map_stands_for_its_parts() -> None:
    mapping = {"lora": {"rank": 2, "targets": ["query", "mlp_down"]}}
    words = {"lora": {"rank": 2, "targets": "subset(query-key-value, attention_output, mlp_down)"}}
    gated = space_on(shape(3, sites=GATED), {"lora": {"rank": 2, "targets": "subset(query, key, mlp_gate, mlp_down)"}})
    same = carried(mapping, shape(3), gated)
    assert same.exact
    assert same.configuration is not None
    assert same.configuration.methods[0].column("targets") == (("self_attn.q_proj", "mlp.down_proj"),) * 3
    fused = carried(mapping, shape(3), space_on(shape(3, sites=FUSED), words))
    assert fused.configuration is not None
    assert fused.configuration.methods[0].column("targets")[0] == ("attn.c_attn", "mlp.c_proj")
    assert fused.notes == ("lora.targets: attention.self.query carried to attn.c_attn",)
    back = carried(
        {"lora": {"rank": 2, "targets": ["query-key-value"]}}, shape(3, sites=FUSED), space_on(shape(3), words)
    )
    assert back.configuration is not None
    assert len(back.configuration.methods[0].column("targets")[0]) == 3  # type: ignore[arg-type]  # a set of sites


@pytest.mark.parametrize(
    ("space", "mapping", "result", "note"),
    [
        (
            {"lora": {"rank": "choice(0, 4)", "targets": ["query"]}},
            {"serial_adapter": {"bottleneck": 4}, "lora": {"rank": 4, "targets": ["query"]}},
            {"lora": {"rank": 4, "targets": ["query"]}},
            "serial_adapter: left out, this space does not have it there",
        ),
        (
            {"layers": "subset(max=1)", "lora": {"rank": 4}},
            {"lora": {"rank": 4, "layers": [0, 2]}, "serial_adapter": {"bottleneck": 4, "layers": [2]}},
            {"lora": {"rank": 4, "layers": [2]}},
            "lora: on layers 2 instead of 0, 2",
        ),
        (
            {"layers": "range", "lora": {"rank": "per_layer(choice(0, 2, 4))"}},
            {"lora": {"rank": [2, 4], "layers": [0, 2]}},
            {"lora": {"rank": [2, 2, 4]}},
            "lora: on layers 0, 1, 2 instead of 0, 2",
        ),
        (
            {"lora": {"rank": "ramp(choice(1, 2, 4))"}},
            {"lora": {"rank": [1, 1, 4]}},
            {"lora": {"rank": [1, 2, 4]}},
            "lora.rank: 1 became 2 on layer 1",
        ),
        (
            {"lora": {"rank": 2}, "serial_adapter": {"bottleneck": "choice(2, 4)"}},
            {"lora": {"rank": 2}},
            {"lora": {"rank": 2}, "serial_adapter": {"bottleneck": 2}},
            "serial_adapter: added, this space always has it",
        ),
        (
            {"lora": {"rank": 2}, "learning_rate": "log(1e-4, 1e-3)"},
            {"lora": {"rank": 2}, "learning_rate": 1e-2},
            {"lora": {"rank": 2}, "learning_rate": 1e-3},
            "learning_rate: 0.01 became 0.001",
        ),
        (
            {"lora": {"rank": 2}, "batch_size": "choice(16, 32)"},
            {"lora": {"rank": 2}},
            {"lora": {"rank": 2}, "batch_size": 16},
            "batch_size: 16, which the source left open",
        ),
        (
            {"lora": {"rank": 2}},
            {"lora": {"rank": 2}, "batch_size": 16},
            {"lora": {"rank": 2}},
            "batch_size: 16 is left to the study, this space does not decide it",
        ),
        (
            {"lora": {"rank": 2, "learning_rate": "log(1e-4, 1e-3)"}},
            {"lora": {"rank": 2}, "learning_rate": 3e-4},
            {"lora": {"rank": 2, "learning_rate": 3e-4}},
            "lora.learning_rate: that of all became 0.0003",
        ),
        (
            {"lora": {"rank": "choice(0, 2)"}},
            {"lora": {"rank": [2, 2], "layers": [0, 1]}},
            {"lora": {"rank": 2}},
            "lora: on layers 0, 1, 2 instead of 0, 1",
        ),
    ],
)
def test_what_the_space_does_not_have_becomes_the_nearest_and_is_said(
    space: dict[str, object], mapping: dict[str, object], result: dict[str, object], note: str
) -> None:
    target = bind(space)
    found = carried(mapping, target.shape, target)
    assert found.configuration == configuration(result, target.shape)
    assert note in found.notes
    assert not found.exact


def test_layers_without_a_counterpart_move_to_the_nearest_ones() -> None:
    target = bind({"layers": [0, 1], "lora": {"rank": 2}}, n_layers=4)
    found = carried({"lora": {"rank": 2, "layers": [3]}}, target.shape, target)
    assert found.configuration is not None
    assert "lora: put on the nearest layers there are" in found.notes


def test_a_method_at_the_input_stays_there_on_a_deeper_model() -> None:
    target = bind({"prompt_tuning": {"length": "choice(0, 4)"}}, n_layers=12)
    found = carried({"prompt_tuning": {"length": 4}}, shape(2, hidden=24, heads=2), target)
    assert found.configuration == configuration({"prompt_tuning": {"length": 4}}, target.shape)


@pytest.mark.parametrize(
    ("space", "note"),
    [
        ({"serial_adapter": {"bottleneck": 2}}, "lora: not in this space, which has serial_adapter"),
        (
            {"lora": {"rank": 2, "when": "batch_size > 16"}, "batch_size": "choice(16, 32)"},
            "nothing is adapted: every method is absent on every layer",
        ),
    ],
)
def test_nothing_to_carry_over_is_said(space: dict[str, object], note: str) -> None:
    target = bind(space)
    found = carried({"lora": {"rank": 2}}, target.shape, target)
    assert found == Translated(configuration=None, exact=False, notes=(note,))


def test_what_the_constraints_refuse_is_moved_until_they_admit_it() -> None:
    target = bind({"lora": {"rank": "choice(0, 1, 2, 4, 8)"}}, constraints=["parameters <= 1000"])
    found = carried({"lora": {"rank": 8}}, target.shape, target)
    assert found.configuration == configuration({"lora": {"rank": 2}}, target.shape)
    assert found.notes == (
        "parameters is 2304, against parameters <= 1000: moved through its neighbours until admitted",
    )


def brute_force(mask: AbstractMask, votes: list[int]) -> int:
    costs = [
        sum((vote == 0) if chosen >> position & 1 else vote for position, vote in enumerate(votes))
        for chosen in range(2 ** len(votes))
        if mask.admits([position for position in range(len(votes)) if chosen >> position & 1], len(votes))
    ]
    return min(costs)


@given(
    votes=st.lists(st.integers(0, 3), min_size=4, max_size=7),
    layers=st.sampled_from(["subset", "subset(min=3)", "subset(max=2)", "range(min=2, max=3)", "top(choice(1, 3))"]),
)
def test_the_nearest_set_of_a_mask_is_as_near_as_any(votes: list[int], layers: str) -> None:
    definition = SpaceDefinition.from_mapping({"layers": layers, "lora": {"rank": 2}})
    mask = bind_mask(definition.layers, len(votes))
    assert mask is not None
    on = nearest_set(mask, votes)
    assert mask.admits(on, len(votes))
    cost = sum((vote == 0) if position in on else vote for position, vote in enumerate(votes))
    assert cost == brute_force(mask, votes)
