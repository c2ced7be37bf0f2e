"""Counts and checks of the methods that change linear maps one by one."""

import pytest

from autopeft.errors import ConfigurationError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.counts import ParameterCounter
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.methods import METHODS
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import FUSED, GATED, shape

ENCODER = shape(3, hidden=48)
DECODER = shape(3, hidden=48, sites=GATED, kv_heads=4, family="llama")
GPT2 = shape(3, hidden=48, sites=FUSED, family="gpt2")
MODELS = {"encoder": ENCODER, "gated": DECODER, "fused": GPT2}

SQUARE, KEY_VALUE, UP = 48 + 48, 48 + 16, 48 + 192


@pytest.mark.parametrize(
    ("model", "source", "count"),
    [
        ("encoder", {"svfit": {"rank": 4}}, 3 * 2 * 4),
        ("encoder", {"loldu": {"rank": 4}}, 3 * 2 * (4 + 1)),
        ("encoder", {"inttune": {"rank": 4}}, 3 * 2 * 16),
        ("gated", {"slora": {"rank": 4}}, 3 * (4 * (SQUARE + KEY_VALUE) + 2 * 16)),
        ("gated", {"nlora": {"rank": 4}}, 3 * (4 * (SQUARE + KEY_VALUE) + 2 * 16)),
        ("gated", {"sorsa": {"rank": 4, "targets": "mlp"}}, 3 * 3 * (4 * UP + 4)),
        ("gated", {"binary_lora": {"rank": 4}}, 3 * 4 * (SQUARE + KEY_VALUE)),
        ("encoder", {"binary_adapter": {"bottleneck": 6}}, 3 * (2 * 48 * 6 + 6 + 48)),
        ("encoder", {"ssf": {"enabled": 1}}, 3 * 2 * (5 * 48 + 192)),
        ("fused", {"ssf": {"enabled": 1, "targets": "c_attn", "layers": [0]}}, 2 * 144),
        ("encoder", {"s2ft": {"channels": 5}}, 3 * 2 * 5 * 48),
        ("gated", {"s2ft": {"channels": 5, "targets": ["v_proj", "up_proj"]}}, 3 * 5 * (48 + 48)),
        ("encoder", {"s2_lora": {"rank": 4}}, 4 * SQUARE + 3 * 2 * 4),
        ("encoder", {"s2_lora": {"rank": [2, 4, 3]}}, 4 * SQUARE + 2 * (2 + 4 + 3)),
        ("gated", {"s2_lora": {"rank": 4, "targets": "attention"}}, 4 * (SQUARE + KEY_VALUE) + 3 * 4 * 4),
    ],
)
def test_counts_follow_the_closed_forms(model: str, source: dict[str, object], count: int) -> None:
    base = MODELS[model]
    assert ParameterCounter(base)(configuration(source, base)) == count


@pytest.mark.parametrize("name", ["svfit", "loldu", "inttune", "slora", "nlora", "sorsa", "s2_lora", "binary_lora"])
def test_a_rank_above_the_width_is_refused_with_the_width(name: str) -> None:
    values: dict[str, FieldValue] = {"rank": 16, "targets": ("self_attn.v_proj",)}
    METHODS[name].check(DECODER, layer=0, values=values)
    with pytest.raises(
        ConfigurationError, match=rf"{name}\.rank: 17 is above the width 16 of self_attn\.v_proj in layer 0"
    ):
        METHODS[name].check(DECODER, layer=0, values=values | {"rank": 17})


@pytest.mark.parametrize(("target", "channels"), [("output.dense", 192), ("intermediate.dense", 192)])
def test_more_channels_than_the_block_has_are_refused(target: str, channels: int) -> None:
    METHODS["s2ft"].check(ENCODER, layer=1, values={"channels": channels, "targets": (target,)})
    with pytest.raises(
        ConfigurationError, match=rf"s2ft\.channels: {channels + 1} is above the {channels} channels of {target} in"
    ):
        METHODS["s2ft"].check(ENCODER, layer=1, values={"channels": channels + 1, "targets": (target,)})


@pytest.mark.parametrize("name", ["binary_lora", "binary_adapter"])
def test_three_bits_are_refused(name: str) -> None:
    values = {METHODS[name].size_field.name: 4, "targets": ("attention.self.query",), "bits": 3}
    with pytest.raises(ConfigurationError, match=rf"{name}\.bits: 3 is not 1, 2 or 4"):
        METHODS[name].check(ENCODER, layer=0, values=values)


def test_a_method_without_a_size_is_there_or_not() -> None:
    with pytest.raises(ConfigurationError, match=r"ssf\.enabled: 2 is neither 0 nor 1"):
        METHODS["ssf"].check(ENCODER, layer=0, values={"enabled": 2, "targets": ("attention.self.query",)})
    with pytest.raises(ConfigurationError, match=r"ssf\.enabled: got 2, a value outside 0 to 1 \(at most 1\)"):
        configuration({"ssf": {"enabled": 2}}, ENCODER)


def test_constraints_know_what_layers_share() -> None:
    source = {
        "layers": "subset(min=1, max=2)",
        "s2_lora": {"rank": "per_layer(choice(0, 2, 8))"},
        "ssf": {"enabled": "per_layer(choice(0, 1))"},
    }
    definition = SpaceDefinition.from_mapping(source)
    space = SearchSpace.bind(definition, shape(2, hidden=48), constraints=("parameters <= 900",))
    count = ParameterCounter(space.shape)
    free = SearchSpace.bind(definition, shape(2, hidden=48))
    everything = [free._build(free._counter.network(number)) for number in range(free._counter.total)]
    assert {space.admits(network) for network in everything} == {True, False}
    assert all(space.admits(network) == (count(network) <= 900) for network in everything)
    low, high = count.limits(free.structure)
    assert all(low <= count(network) <= high for network in everything)
    assert max(count(network) for network in everything) == high
