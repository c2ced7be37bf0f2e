"""The canonical value itself: JSON, look-ups, identity."""

import json

import pytest

from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import read_columns
from autopeft.spaces.model_shape import ModelShape, Role
from tests.spaces.builders import GATED, shape

SMALL = shape(3, hidden=24, heads=2)


@pytest.mark.parametrize("targets", ["query", [["query"], ["key"], ["query", "value"]]])
@pytest.mark.parametrize("rank", [4, [1, 2, 3]])
def test_settings_are_read_back_from_their_json(targets: object, rank: object) -> None:
    (setting,) = configuration({"lora": {"rank": rank, "targets": targets}}, SMALL).methods
    row = json.loads(json.dumps(setting.to_json())) | {"method": "lora"}
    assert read_columns(row, set_fields=["targets"]) == setting


def test_values_are_looked_up_by_layer_and_method() -> None:
    network = configuration({"lora": {"rank": [4, 0, 8]}, "prefix_tuning": {"length": 2, "layers": [1]}}, SMALL)
    (lora, prefix) = network
    assert network.method("prefix_tuning") == prefix
    assert network.method("serial_adapter") is None
    assert network.adapted_layers == (0, 1, 2)
    assert prefix.at(1) == {"length": 2}
    assert prefix.at(0) is None
    assert lora.column("rank") == (4, 8)


def test_ids_are_stable_across_versions() -> None:
    network = configuration({"lora": {"rank": 8, "layers": [0, 1]}, "learning_rate": 1e-3}, SMALL)
    assert network.id == "7228161b2fe7"
    assert network.id != configuration({"lora": {"rank": 8, "layers": [0, 2]}, "learning_rate": 1e-3}, SMALL).id


def test_shapes_go_through_json_and_name_their_sites() -> None:
    model = shape(2, hidden=24, heads=4, kv_heads=2, sites=GATED)
    assert ModelShape.from_json(json.loads(json.dumps(model.to_json()))) == model
    assert model.site(1, "self_attn.k_proj").role is Role.KEY
    assert model.site(1, "self_attn.k_proj").d_out == model.kv_size == 12
    with pytest.raises(KeyError, match="nothing"):
        model.site(0, "nothing")
