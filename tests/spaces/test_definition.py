"""Definitions: mappings, presets and objects, all errors with their place."""

import json
import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from autopeft import spaces
from autopeft.errors import SpaceError
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.presets import load_preset, preset_names
from tests.spaces.twins import mappings


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(mapping=mappings())
def test_definitions_go_through_yaml_and_json_without_loss(mapping: dict[str, object]) -> None:
    try:
        definition = SpaceDefinition.from_mapping(mapping)
    except SpaceError as error:
        assert re.search("layer to layer|no single levels", str(error))  # noqa: PT017
        return
    plain = definition.to_mapping()
    assert SpaceDefinition.from_mapping(yaml.safe_load(yaml.safe_dump(plain))) == definition
    assert SpaceDefinition.from_mapping(json.loads(json.dumps(plain))) == definition
    assert definition.differences(SpaceDefinition.from_mapping(plain)) == []


def test_python_objects_and_text_define_the_same_space() -> None:
    objects = {
        "layers": spaces.subset(max=4),
        "lora": {"rank": spaces.per_layer(spaces.choice(0, 2, 8)), "targets": spaces.subset("query", "key")},
        "learning_rate": spaces.log(1e-4, 1e-2),
    }
    text = {
        "layers": "subset(max=4)",
        "lora": {"rank": "per_layer(choice(0, 2, 8))", "targets": "subset(query, key)"},
        "learning_rate": "log(1e-4, 1e-2)",
    }
    assert SpaceDefinition.from_mapping(objects) == SpaceDefinition.from_mapping(text)


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    source = yaml.safe_load("{lora: {rank: '8', dropout: 1e-1}, learning_rate: 1e-4, batch_size: 16.0}")
    assert isinstance(source["learning_rate"], str)
    plain = SpaceDefinition.from_mapping(source).to_mapping()
    assert plain == {"lora": {"rank": 8, "dropout": 0.1}, "learning_rate": 0.0001, "batch_size": 16}


def test_reals_have_six_digits_so_that_equal_spellings_are_equal() -> None:
    first = SpaceDefinition.from_mapping({"lora": {"rank": 8}, "learning_rate": "log(1e-4, 0.03333333333)"})
    second = SpaceDefinition.from_mapping({"lora": {"rank": 8}, "learning_rate": "log(0.0001, 0.0333333)"})
    assert first == second


def test_every_preset_loads_and_is_a_mapping_of_its_own() -> None:
    assert set(preset_names()) >= {"autopeft", "lora-per-layer"}
    for name in preset_names():
        assert SpaceDefinition.from_mapping(name) == SpaceDefinition.from_mapping({"preset": name})
        load_preset(name)["layers"] = "all"
        assert SpaceDefinition.from_mapping(load_preset(name)) == SpaceDefinition.from_mapping(name)


def test_a_preset_is_changed_field_by_field() -> None:
    changed = SpaceDefinition.from_mapping(
        {"preset": "lora-per-layer", "layers": "subset", "lora": {"rank": 8}, "learning_rate": None}
    )
    assert changed.to_mapping() == {"layers": "subset", "lora": {"targets": ["query-value"], "rank": 8}}


def test_differences_name_every_entry_that_is_not_the_same() -> None:
    old = SpaceDefinition.from_mapping({"layers": "subset", "lora": {"rank": "choice(0, 8)", "alpha": 8}})
    new = SpaceDefinition.from_mapping({"lora": {"rank": "choice(0, 16)", "alpha": 8}, "batch_size": 16})
    assert old.differences(new) == [
        "batch_size: not there against 16",
        "layers: subset against not there",
        "lora.rank: choice(0, 8) against choice(0, 16)",
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("autopfet", "space: unknown preset 'autopfet'; known are .*did you mean 'autopeft'"),
        ({"preset": ["x"]}, r"space: unknown preset \['x'\]"),
        (3, "space: got 3 .*a preset's name, or a mapping"),
        ({}, "space: no method is named.*add one of .*lora"),
        ({"layers": "subset"}, "space: no method is named"),
        ({"lroa": {"rank": 8}}, "space: unknown key 'lroa'; known are .*did you mean 'lora'"),
        ({1: {"rank": 8}}, "space: unknown key '1'"),
        ({"lora": {"rnk": 8}}, r"space\.lora: unknown key 'rnk'; .*did you mean 'rank'"),
        ({"lora": {"alpha": 8}}, r"space\.lora\.rank: the size is missing"),
        ({"lora": 8}, r"space\.lora: got 8, not a mapping .*write lora: {rank"),
        ({"lora": {"rank": "choice(-8, 8)"}}, r"space\.lora\.rank: got -8, a size, which is negative .*0 means"),
        ({"lora": {"rank": -1}}, r"space\.lora\.rank: got -1, a size, which is negative"),
        ({"lora": {"rank": "int(-3, 4)"}}, r"space\.lora\.rank: got -3, a size, which is negative"),
        ({"lora": {"rank": 2.5}}, r"space\.lora\.rank: got 2\.5, but rank is a whole number"),
        ({"lora": {"rank": "eight"}}, r"space\.lora\.rank: got 'eight', but \w+ is of kind size"),
        ({"lora": {"rank": True}}, r"space\.lora\.rank: got 'true', but \w+ is of kind size"),
        ({"lora": {"rank": "real(1, 8)"}}, r"space\.lora\.rank: got real\(1, 8\), but \w+ is of kind size"),
        ({"lora": {"rank": ["a"]}}, r"space\.lora\.rank: got the list \['a'\], but \w+ is of kind size"),
        ({"lora": {"rank": [4, 8]}}, r"space\.lora\.rank: \[4, 8\] is no domain"),
        ({"lora": {"rank": "groups(2, -4)"}}, r"space\.lora\.rank: got -4, a size, which is negative"),
        ({"lora": {"rank": "groups(2, a8)"}}, r"space\.lora\.rank: groups\(2, a8\): mixes numbers"),
        ({"lora": {"rank": "groups(a, b)"}}, r"space\.lora\.rank: got 'a', but \w+ is of kind size"),
        ({"lora": {"rank": 8}, "learning_rate": "groups(1e-4, 1e-3)"}, "learning_rate: got groups.*no layers"),
        ({"lora": {"rank": None}}, r"space\.lora\.rank: None is no domain"),
        (
            {"lora": {"rank": 8, "dropout": 1.5}},
            r"space\.lora\.dropout: got 1\.5, a value outside 0 to 0\.99 .*at most 0\.99",
        ),
        (
            {"lora": {"rank": 8, "dropout": "int(0, 1)"}},
            r"space\.lora\.dropout: got int\(0, 1\), but \w+ is of kind real",
        ),
        ({"lora": {"rank": 8, "targets": 3}}, r"space\.lora\.targets: got 3, but targets are words"),
        ({"lora": {"rank": 8, "targets": "subset"}}, r"space\.lora\.targets: got a bare subset"),
        ({"lora": {"rank": 8, "targets": "choice(1, 2)"}}, r"space\.lora\.targets: got 1, but targets are words"),
        (
            {"serial_adapter": {"bottleneck": 8, "activation": "glu"}},
            "activation: got 'glu'; it is one of relu, .*did you mean",
        ),
        (
            {"serial_adapter": {"bottleneck": 8, "activation": "bool"}},
            r"activation: got bool, but \w+ is of kind category",
        ),
        (
            {"serial_adapter": {"bottleneck": 8, "activation": "ramp(choice(relu, gelu))"}},
            "a ramp runs over 2 to 32 numbers",
        ),
        ({"serial_adapter": {"bottleneck": "ramp(int(0, 99))"}}, "a ramp runs over 2 to 32 numbers"),
        ({"serial_adapter": {"bottleneck": 8, "scale": "ramp(real(1, 2))"}}, "a ramp runs over 2 to 32 numbers"),
        (
            {"lora": {"rank": 8}, "learning_rate": "per_layer(log(1e-4, 1e-2))"},
            "learning_rate: got per_layer.*no layers",
        ),
        ({"lora": {"rank": 8}, "batch_size": 0}, "batch_size: got 0, a value outside 1 to"),
        ({"lora": {"rank": 8}, "layers": "choice(1, 2)"}, r"space\.layers: got choice\(1, 2\)"),
        (
            {"lora": {"rank": 8}, "layers": "subset(query)"},
            r"space\.layers: .*subset of layers takes min and max by name",
        ),
        ({"lora": {"rank": 8}, "layers": "subset("}, r"space\.layers: .*a call without its end"),
        ({"lora": {"rank": 8}, "layers": 3}, r"space\.layers: got 3"),
        ({"lora": {"rank": 8}, "layers": []}, r"space\.layers: got \[\]; at least one layer"),
        ({"lora": {"rank": 8}, "layers": [1, 1]}, r"space\.layers: got \[1, 1\]; at least one layer, each once"),
        ({"lora": {"rank": 8}, "layers": [-1]}, r"space\.layers: -1 is no layer"),
    ],
)
def test_malformed_definitions_name_place_value_and_fix(source: object, message: str) -> None:
    with pytest.raises(SpaceError, match=re.compile(message, re.DOTALL)) as caught:
        SpaceDefinition.from_mapping(source)  # type: ignore[arg-type]
    assert caught.value.hint


def test_a_call_that_yaml_cut_in_two_is_recognised() -> None:
    source = yaml.safe_load("lora: {rank: choice(2, 8)}")
    with pytest.raises(SpaceError, match=r'inside YAML braces a call must be quoted: \{rank: "choice\(2, 8\)"\}'):
        SpaceDefinition.from_mapping(source)
