"""What every row of the method table keeps to, without building a model."""

import math
import re
from dataclasses import replace

import pytest

from autopeft.errors import ConfigurationError
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.counts import ParameterCounter
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.model_shape import ModelShape
from tests.spaces.builders import ENCODER, FUSED, GATED, shape

MODELS = {
    "encoder": shape(3, hidden=48),
    "fused": shape(3, hidden=48, sites=FUSED, family="gpt2"),
    "gated": shape(3, hidden=48, sites=GATED, kv_heads=4, family="llama"),
}


ODD_SIZES = {"c3a": [4, 2, 1], "gralora": [2, 4, 6], "randlora": [8, 4, 2]}
"""Sizes with ascending counts where 2, 3, 4 have none: larger is cheaper, or the size has to be even."""


def sizes_of(name: str) -> list[int]:
    """Sizes for three layers that give ascending counts; ones where a method is only there or not."""
    return [1, 1, 1] if METHODS[name].size_field.high == 1 else ODD_SIZES.get(name, [2, 3, 4])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_name_one_size_and_a_source(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert [field.kind for field in method.fields].count(FieldKind.SIZE) == 1
    assert method.size_field.default is None
    assert re.search(r"arXiv \d{4}\.\d{5}|openreview \w+|Hugging Face PEFT", method.source)
    assert len({field.name for field in method.fields}) == len(method.fields)
    assert not {field.name for field in method.fields} & {"layers", "when", "method"}
    assert all(field.help for field in method.fields)


NOT_BUILT = {("adaption_prompt", "fused")}
"""A method on a model that it refuses: it reads a key and a value map."""
PAIRS = [(name, model) for name in METHODS for model in MODELS if (name, model) not in NOT_BUILT]


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_defaults_are_values_that_a_configuration_may_write(name: str, model: str) -> None:
    method, base = METHODS[name], MODELS[model]
    size = {method.size_field.name: sizes_of(name)[0]}
    plain = configuration({name: size}, base)
    defaults = {field.name: field.default for field in method.fields if field.default is not None}
    written = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    assert configuration({name: size | written}, base) == plain


@pytest.mark.parametrize(("name", "model"), [pair for pair in PAIRS if not METHODS[pair[0]].at_input])
def test_parameters_add_up_over_layers(name: str, model: str) -> None:
    base = MODELS[model]
    count = ParameterCounter(base)
    method, sizes = METHODS[name], sizes_of(name)
    size = method.size_field.name
    whole = configuration({name: {size: sizes}}, base)
    parts = [configuration({name: {size: sizes[layer], "layers": [layer]}}, base) for layer in range(3)]
    own = [count(part) - method.shared_parameters(base, part.methods[0]) for part in parts]
    assert count(whole) == sum(own) + method.shared_parameters(base, whole.methods[0])
    assert count_parameters(whole, base).total == count(whole)
    rising = own if any(own) else [count(part) for part in parts]
    assert 0 < rising[0] <= rising[1] <= rising[2]
    assert rising[0] < rising[2] or sizes[0] == sizes[2]


@pytest.mark.parametrize(
    ("model", "source", "count"),
    [
        ("encoder", {"serial_adapter": {"bottleneck": 6}}, 3 * (2 * 48 * 6 + 6 + 48)),
        ("encoder", {"parallel_adapter": {"bottleneck": 6, "layers": [1]}}, 2 * 48 * 6 + 6 + 48),
        ("encoder", {"prefix_tuning": {"length": 5}}, 3 * 2 * 5 * 48),
        ("gated", {"prefix_tuning": {"length": 5}}, 3 * 2 * 5 * 16),
        ("encoder", {"lora": {"rank": 4}}, 3 * 4 * 2 * (48 + 48)),
        ("gated", {"lora": {"rank": 4}}, 3 * 4 * (48 + 48 + 48 + 16)),
        ("fused", {"lora": {"rank": 4}}, 3 * 4 * (48 + 144)),
        ("gated", {"lora": {"rank": 4, "targets": "mlp"}}, 3 * 4 * 3 * (48 + 192)),
    ],
)
def test_counts_follow_the_closed_forms(model: str, source: dict[str, object], count: int) -> None:
    base = MODELS[model]
    assert ParameterCounter(base)(configuration(source, base)) == count


def check(name: str, base: ModelShape, values: dict[str, FieldValue]) -> None:
    METHODS[name].check(base, layer=0, values=values)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8"])
@pytest.mark.parametrize("name", METHODS)
def test_a_size_is_a_whole_number_from_one(name: str, size: FieldValue) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}.* is not a whole number from 1"):
        check(name, MODELS["encoder"], {METHODS[name].size_field.name: size, "targets": ("attention.self.query",)})


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((), r"lora\.targets: \(\) is no list of sites"),
        ("query", r"lora\.targets: 'query' is no list of sites"),
        (("q",), r"lora\.targets: layer 0 has no 'q'; it has attention\.self\.query"),
    ],
)
def test_lora_needs_sites_of_the_layer(targets: FieldValue, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check("lora", MODELS["encoder"], {"rank": 8, "targets": targets})


def test_a_rank_above_the_width_is_refused_with_the_width() -> None:
    check("lora", MODELS["encoder"], {"rank": 48, "targets": ("attention.self.query",)})
    with pytest.raises(
        ConfigurationError, match=r"lora\.rank: 49 is above the width 48 of attention\.self\.query in layer 0"
    ):
        check("lora", MODELS["encoder"], {"rank": 49, "targets": ("attention.self.query",)})


@pytest.mark.parametrize("name", ["serial_adapter", "parallel_adapter"])
def test_adapters_need_a_feed_forward_block(name: str) -> None:
    bare = shape(1, hidden=48, sites=ENCODER[:4])
    with pytest.raises(ConfigurationError, match=f"{name}: layer 0 of this bert model has no mlp_up site"):
        check(name, bare, {"bottleneck": 4})


def test_remembered_counts_are_forgotten_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.spaces.counts._CACHED", 4)
    base = MODELS["encoder"]
    count = ParameterCounter(base)
    networks = [configuration({"prefix_tuning": {"length": length}}, base) for length in range(1, 12)]
    assert [count(network) for network in networks] == [3 * 2 * length * 48 for length in range(1, 12)]
    assert math.prod(count(network) for network in networks) > 0


def test_layers_with_equal_maps_and_other_norms_are_counted_each_for_itself() -> None:
    """ModernBERT's first layer has no norm before its attention."""
    whole = shape(3, hidden=48)
    extra = tuple(replace(part, name=part.name.replace("output.", "attention.")) for part in whole.parts[2:])
    uneven = replace(whole, parts=(*whole.parts, *extra))
    counter = ParameterCounter(uneven)
    for layers, norms in (([1], 2), ([0], 1), ([0, 2], 3), ([0, 1, 2], 5)):
        config = configuration({"ln_tuning": {"enabled": 1, "layers": layers}}, uneven)
        assert counter(config) == count_parameters(config, uneven).total == norms * 2 * 48
    assert uneven.kind_of(1) == uneven.kind_of(2) != uneven.kind_of(0)
    assert replace(uneven, closed_attention=(2,)).kind_of(1) != replace(uneven, closed_attention=(2,)).kind_of(2)
