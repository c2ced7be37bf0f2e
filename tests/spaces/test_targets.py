"""Target words."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from autopeft.errors import SpaceError
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from autopeft.spaces.targets import resolve
from tests.spaces.builders import ENCODER, FUSED, GATED, shape

MODELS = {"encoder": shape(sites=ENCODER), "fused": shape(sites=FUSED), "gated": shape(sites=GATED)}


@pytest.mark.parametrize(
    ("model", "words", "sites"),
    [
        ("encoder", ["output.dense"], ["output.dense"]),
        ("encoder", ["dense"], ["attention.output.dense", "intermediate.dense", "output.dense"]),
        ("encoder", ["mlp_up"], ["intermediate.dense"]),
        ("encoder", ["value", "query"], ["attention.self.query", "attention.self.value"]),
        ("encoder", ["self.query"], ["attention.self.query"]),
        ("gated", ["query", "q_proj"], ["self_attn.q_proj"]),
        ("gated", ["mlp"], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("gated", ["query-value"], ["self_attn.q_proj", "self_attn.v_proj"]),
        ("fused", ["query-value"], ["attn.c_attn"]),
        ("fused", ["c_proj"], ["attn.c_proj", "mlp.c_proj"]),
        ("fused", ["attention"], ["attn.c_attn", "attn.c_proj"]),
        ("fused", ["all-linear"], [name for name, _ in FUSED]),
    ],
)
def test_words_name_sites_in_module_order(model: str, words: list[str], sites: list[str]) -> None:
    assert resolve(words, MODELS[model], 0) == tuple(sites)


def test_an_unknown_word_lists_the_sites_and_the_nearest() -> None:
    with pytest.raises(
        SpaceError, match=r"'q_prj' is no target in layer 3 of this bert model; its linear sites are self_attn"
    ) as caught:
        resolve(["q_prj"], MODELS["gated"], 3)
    assert all(name in caught.value.message for name, _ in GATED)
    assert caught.value.hint == "did you mean 'q_proj'?"


@pytest.mark.parametrize(
    ("model", "word", "hint"),
    [
        ("fused", "query", r"query, key and value are one map here: write query_key_value, or query-value"),
        ("gated", "all", r"did you mean 'all-linear'\?"),
        ("gated", "re:.*query", r"a pattern matches a site's whole name within its layer, for example re:\.\*proj"),
        ("encoder", "qurey", r"did you mean 'query'\?"),
    ],
)
def test_what_is_probably_meant_is_said(model: str, word: str, hint: str) -> None:
    with pytest.raises(SpaceError, match=hint):
        resolve([word], MODELS[model], 0)


def test_words_with_commas_are_answered_with_the_ways_to_name_several() -> None:
    for text in ("query, value", "choice(attention, [query, value])"):
        with pytest.raises(SpaceError, match=r"space\.lora\.targets: .*\(write a list \[query, value\], subset"):
            SpaceDefinition.from_mapping({"lora": {"rank": 2, "targets": text}})


def test_a_role_that_the_architecture_lacks_is_unknown() -> None:
    with pytest.raises(SpaceError, match="'value' is no target"):
        resolve(["value"], MODELS["fused"], 0)


@pytest.mark.parametrize(
    ("model", "words", "sites"),
    [
        ("gated", ["re:.*\\.(q|v)_proj"], ["self_attn.q_proj", "self_attn.v_proj"]),
        ("gated", ["re:mlp\\..*", "query"], ["self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("encoder", ["re:.*dense"], ["attention.output.dense", "intermediate.dense", "output.dense"]),
    ],
)
def test_regular_expressions_match_whole_names(model: str, words: list[str], sites: list[str]) -> None:
    assert resolve(words, MODELS[model], 0) == tuple(sites)


def test_a_pattern_that_matches_nothing_is_no_target() -> None:
    with pytest.raises(SpaceError, match=r"'re:q_proj' is no target in layer 0"):
        resolve(["re:q_proj"], MODELS["gated"], 0)


@pytest.mark.parametrize(
    "targets",
    ["re:.*(query|value)", ["re:.*(query|value)", "mlp"], 'choice("re:.*query", mlp)', 'subset("re:.*query", mlp)'],
)
def test_patterns_are_words_wherever_targets_are_written(targets: object) -> None:
    definition = SpaceDefinition.from_mapping({"lora": {"rank": 2, "targets": targets}})
    assert SpaceDefinition.from_mapping(definition.to_mapping()) == definition
    space = SearchSpace.bind(definition, shape(2))
    for network in space.configurations():
        assert space.decode(space.encode(network)) == network


def test_a_malformed_pattern_is_named_by_its_place() -> None:
    definition = SpaceDefinition.from_mapping({"lora": {"rank": 2, "targets": "re:(query"}})
    with pytest.raises(SpaceError, match=r"space\.lora\.targets: column 1 of the pattern '\(query'.*without end"):
        SearchSpace.bind(definition, shape(2))


def test_the_groups_of_the_decoder_example_are_a_dimension() -> None:
    text = (Path(__file__).parents[2] / "examples" / "llama-lora.yaml").read_text(encoding="utf-8")
    definition = SpaceDefinition.from_mapping(yaml.safe_load(text)["space"])
    gated = shape(4, hidden=64, sites=GATED, heads=4, kv_heads=2, family="llama")
    space = SearchSpace.bind(definition, gated, constraints=["parameters <= 1%"])
    assert {row.name: row.levels for row in space.dimensions}["lora.targets"] == ("attention", "mlp", "all-linear")
    drawn = space.sample(np.random.default_rng(0), 30)
    settings = [setting for network in drawn for setting in network]
    assert {len(names) for setting in settings for names in setting.column("targets")} == {3, 4, 7}  # type: ignore[arg-type]  # names
    assert all(space.assemble(space.spell(network)) == network for network in drawn)
