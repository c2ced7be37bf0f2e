"""Hand-written configurations."""

import json
import re

import pytest

from autopeft.errors import ConfigurationError
from autopeft.spaces.canonical import configuration, read_configuration
from tests.spaces.builders import FUSED, GATED, shape

SMALL = shape(3, hidden=24, heads=2)


def test_defaults_are_filled_in_and_targets_become_sites() -> None:
    network = configuration({"lora": {"rank": 8, "layers": [2, 0]}, "learning_rate": "1e-3"}, SMALL)
    assert network.to_json() == {
        "lora": {
            "layers": [0, 2],
            "alpha": 16.0,
            "dropout": 0.0,
            "rank": 8,
            "targets": ["attention.self.query", "attention.self.value"],
        },
        "learning_rate": 0.001,
    }


def test_a_list_has_one_value_a_layer_and_zero_is_absent() -> None:
    network = configuration(
        {"lora": {"rank": [4, 0, 8], "targets": [["query"], ["key"], ["mlp"]]}, "prefix_tuning": {"length": [0, 0, 0]}},
        SMALL,
    )
    (lora,) = network.methods
    assert lora.layers == (0, 2)
    assert lora.column("rank") == (4, 8)
    assert lora.column("targets") == (("attention.self.query",), ("intermediate.dense", "output.dense"))
    assert configuration(json.loads(json.dumps(network.to_json())), SMALL) == network


def test_lists_follow_the_order_in_which_the_layers_are_written() -> None:
    first = configuration({"lora": {"rank": [4, 8], "layers": [2, 0]}}, SMALL)
    second = configuration({"lora": {"rank": [8, 4], "layers": [0, 2], "targets": ["value", "query"]}}, SMALL)
    assert first == second
    assert first.id == second.id


@pytest.mark.parametrize("layers", [None, "all", [0, 1, 2]])
def test_every_layer_has_three_spellings(layers: object) -> None:
    assert configuration({"lora": {"rank": 2, "layers": layers}}, SMALL) == configuration({"lora": {"rank": 2}}, SMALL)


def test_one_layer_may_be_written_without_brackets() -> None:
    assert configuration({"lora": {"rank": 2, "layers": 1}}, SMALL).adapted_layers == (1,)


def test_role_words_work_on_every_architecture() -> None:
    gated = shape(2, hidden=24, heads=4, kv_heads=2, sites=GATED)
    fused = shape(2, hidden=24, sites=FUSED)
    named = [configuration({"lora": {"rank": 2, "targets": "query"}}, model).methods[0] for model in (SMALL, gated)]
    assert [row.column("targets")[0] for row in named] == [("attention.self.query",), ("self_attn.q_proj",)]
    assert configuration({"lora": {"rank": 2}}, fused).methods[0].column("targets")[0] == ("attn.c_attn",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "configuration: nothing is adapted .*write for instance"),
        ({"lora": {"rank": 0}}, "configuration: nothing is adapted"),
        ({"lroa": {"rank": 8}}, "configuration: unknown key 'lroa'; known are .*did you mean 'lora'"),
        ({"lora": {"rnk": 8}}, "lora: unknown key 'rnk'; known are .*did you mean 'rank'"),
        ({"lora": {"alpha": 8}}, r"lora\.rank: the size is missing"),
        ({"lora": 8}, r"lora: got 8, not a mapping \(write lora: \{rank: 8\}"),
        ({"lora": {"rank": 8, "layers": [3]}}, r"lora\.layers: 3 is no layer of this model \(layers are 0 to 2"),
        ({"lora": {"rank": 8, "layers": [True]}}, r"lora\.layers: True is no layer"),
        ({"lora": {"rank": 8, "layers": []}}, r"lora\.layers: \[\] is empty or names a layer twice"),
        ({"lora": {"rank": 8, "layers": [1, 1]}}, r"lora\.layers: \[1, 1\] is empty or names a layer twice"),
        ({"lora": {"rank": [8, 4]}}, r"lora\.rank: a list of 2 for 3 layers"),
        ({"lora": {"rank": -8}}, r"lora\.rank: got -8, a size, which is negative"),
        ({"lora": {"rank": {}}}, r"lora\.rank: got \{\} \(write one plain value"),
        (
            {"lora": {"rank": "choice(0, 8)"}},
            r"lora\.rank: got 'choice\(0, 8\)', but \w+ is of kind size \(a configuration has values, not domains",
        ),
        ({"lora": {"rank": 32}}, r"lora\.rank: 32 is above the width 24 of attention\.self\.query in layer 0"),
        (
            {"lora": {"rank": 8, "targets": "qury"}},
            r"lora\.targets: 'qury' is no target in layer 0 .*did you mean 'query'",
        ),
        ({"lora": {"rank": 8, "targets": []}}, r"lora\.targets: got \[\] \(write targets as words"),
        ({"lora": {"rank": 8, "targets": [["query"], 3, ["key"]]}}, r"lora\.targets: got 3"),
        ({"lora": {"rank": 8}, "batch_size": 0}, "batch_size: got 0, a value outside 1"),
        ({"lora": {"rank": 8}, "learning_rate": [1]}, r"learning_rate: got \[1\]"),
    ],
)
def test_wrong_configurations_name_place_value_and_fix(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.compile(message, re.DOTALL)) as caught:
        configuration(source, SMALL)
    assert caught.value.hint


def test_an_adapter_needs_a_feed_forward_block() -> None:
    bare = shape(2, hidden=24, sites=GATED[:4])
    with pytest.raises(
        ConfigurationError, match=r"serial_adapter: layer 0 .* has no mlp_up site, so no feed-forward block"
    ):
        configuration({"serial_adapter": {"bottleneck": 4}}, bare)


def test_a_stored_configuration_without_a_field_of_this_version_has_its_default() -> None:
    base = shape(3, hidden=48)
    now = configuration({"peft_deft": {"rank": [2, 3, 2]}}, base)
    stored = dict(now.to_json())
    stored["peft_deft"] = {key: value for key, value in stored["peft_deft"].items() if key != "scaling"}  # type: ignore[attr-defined]
    assert read_configuration(stored) == now
