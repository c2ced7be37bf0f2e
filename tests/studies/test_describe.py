from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.objectives.objective import COSTS, METRICS
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape, Role, Site
from autopeft.studies.describe import (
    depth,
    describe,
    describe_method,
    human_bytes,
    human_seconds,
    human_value,
    layer_range,
    layer_sizes,
    number,
    site_words,
)
from tests.studies.synthetic import lora, setting


def config(*methods, **training) -> Configuration:
    return Configuration(methods=methods, training=tuple(sorted(training.items())))


def shape_of(n_layers: int) -> ModelShape:
    row = (
        Site(name="attn.c_attn", d_in=8, d_out=24, bias=True, role=Role.QUERY_KEY_VALUE),
        Site(name="attn.c_proj", d_in=8, d_out=8, bias=True, role=Role.ATTENTION_OUTPUT),
    )
    return ModelShape(
        family="gpt2",
        layer_path="h",
        layers=(row,) * n_layers,
        hidden_size=8,
        n_heads=2,
        n_kv_heads=2,
        head_dim=4,
        vocabulary_size=10,
        base_parameters=1000,
        embedding_parameters=80,
        causal=True,
    )


def test_a_configuration_reads_as_one_line() -> None:
    serial = setting("serial_adapter", (3, 5), bottleneck=24, activation="relu", scale=1.0)
    text = describe(config(lora((0, 1, 2, 3, 4, 5), 8), serial, learning_rate=1e-3))
    assert text == "lora r8 q,v on 0-5 · serial 24 on 3,5 · lr 1e-3"


def test_what_is_switched_off_in_training_goes_without_saying() -> None:
    off = config(lora((0,), 8), ba_consistency=0.0, checkpointing=False, layer_sampling="none", accumulation=1)
    assert describe(off) == "lora r8 q,v on 0"
    on = config(lora((0,), 8), ba_consistency=0.1, checkpointing=True, layer_sampling="random", accumulation=2)
    assert describe(on) == (
        "lora r8 q,v on 0 · accumulation 2 · ba_consistency 0.1 · checkpointing true · layer_sampling random"
    )


def test_a_rate_of_its_own_stands_with_its_method() -> None:
    own = replace(lora((0, 1), 8), learning_rate=1e-3)
    assert describe(config(own, learning_rate=5e-4)) == "lora r8 q,v lr 1e-3 on 0-1 · lr 5e-4"


def test_sizes_that_change_with_depth_are_grouped_or_listed() -> None:
    assert describe(config(lora((0, 1, 2), [8, 8, 4]))) == "lora q,v r8 on 0-1, r4 on 2"
    assert describe(config(lora((0, 1, 2, 5), [8, 2, 4, 16]))) == "lora r8 2 4 16 q,v on 0-2,5"


def test_what_differs_from_the_default_is_said() -> None:
    assert describe(config(lora((0,), 8, alpha=32.0))) == "lora r8 alpha 32 q,v on 0"
    routed = setting("mola", (0, 1), experts=[4, 2], rank=4, alpha=16.0, targets=("attn.c_attn",), top_k=2)
    assert describe(config(routed)) == "mola rank 4 qkv e4 on 0, e2 on 1"
    one = setting("parallel_adapter", (0, 1), bottleneck=6, activation=["relu", "gelu"], scale=4.0)
    assert describe(config(one)) == "parallel 6 activation relu/gelu on 0-1"


def test_a_model_shape_gives_sites_their_roles_and_all_layers_one_word() -> None:
    one = lora((0, 1), 8, targets=("attn.c_attn", "attn.c_proj"))
    assert describe(config(one), shape_of(2)) == "lora r8 qkv,o on all"
    assert describe(config(one), shape_of(3)) == "lora r8 qkv,o on 0-1"


def test_sites_whose_short_names_would_collide_stay_long() -> None:
    assert site_words(("a.dense", "b.dense")) == "a.dense,b.dense"


def test_no_method_and_unknown_methods_are_described_too() -> None:
    assert describe(config(batch_size=16)) == "no adapter · batch 16"
    assert describe(config(setting("ia3", (0, 2), init="one"))) == "ia3 init one on 0,2"


@given(st.sets(st.integers(0, 40), min_size=1))
def test_layer_ranges_say_exactly_the_layers(layers: set[int]) -> None:
    said: set[int] = set()
    for part in layer_range(sorted(layers)).split(","):
        first, _, last = part.partition("-")
        said |= set(range(int(first), int(last or first) + 1))
    assert said == layers


@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_numbers_are_said_to_three_digits(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (412 * 2**20, "412 MiB"), (1.53 * 2**30, "1.53 GiB")],
)
def test_bytes_have_binary_units(value: float, text: str) -> None:
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.44, "8.4 s"), (59.4, "59 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_read_like_a_clock(value: float, text: str) -> None:
    assert human_seconds(value) == text


def test_values_have_the_form_of_their_objective() -> None:
    assert human_value(COSTS["parameters"], 1234567) == "1,234,567"
    assert human_value(COSTS["memory"], 2**20) == "1 MiB"
    assert human_value(COSTS["train_seconds"], 61) == "1 min 01 s"
    assert human_value(METRICS["accuracy"], 0.91234) == "0.9123"
    assert human_value(METRICS["perplexity"], 1234.5) == "1,234.50"
    assert human_value(METRICS["accuracy"], float("nan")) == "-"


def test_layer_sizes_are_zero_where_a_method_is_absent() -> None:
    assert layer_sizes(lora((1, 3), [8, 2]), 5) == [0, 8, 0, 2, 0]
    assert layer_sizes(setting("ia3", (1,), init="one"), 2) == [0, 1]


def test_depth_is_the_models_or_that_of_the_deepest_configuration() -> None:
    assert depth([config(lora((0, 3), 8))]) == 4
    assert depth([config(lora((0,), 8))], shape_of(6)) == 6
    assert depth([]) == 0


def test_a_size_that_is_neither_a_rank_nor_a_width_reads_as_what_it_is() -> None:
    channels = setting("s2ft", (0, 1), channels=[2, 4], targets=("output.dense",))
    scales = setting("ssf", (0, 2), enabled=1, targets=("attention.self.query",))
    assert describe_method(channels) == "s2ft down 2 on 0, 4 on 1"
    assert describe_method(scales) == "ssf q on 0,2"
    assert (layer_sizes(channels, 3), layer_sizes(scales, 3)) == ([2, 4, 0], [1, 0, 1])
