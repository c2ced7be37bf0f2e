"""Bottlenecks on linear maps, in series and parallel: counts by place."""

import pytest

from autopeft.errors import ConfigurationError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.counts import ParameterCounter
from autopeft.spaces.methods import METHODS
from tests.spaces.builders import FUSED, GATED, shape

GATED_BASE = shape(2, hidden=48, sites=GATED, kv_heads=4, family="llama")
FUSED_BASE = shape(2, hidden=48, sites=FUSED, family="gpt2")


@pytest.mark.parametrize(
    ("method", "targets", "count"),
    [
        ("linear_series", "mlp_up", 2 * 48),
        ("linear_series", "mlp_gate", 2 * 48),
        ("linear_series", "mlp_down", 2 * 48),
        ("linear_series", "key", 2 * 16),
        ("linear_series", "mlp", 3 * 2 * 48),
        ("linear_parallel", "mlp_up", 48 + 192),
        ("linear_parallel", "mlp_down", 192 + 48),
        ("linear_parallel", "key", 48 + 16),
        ("linear_parallel", "gate-up", 2 * (48 + 192)),
    ],
)
def test_counts_follow_the_place(method: str, targets: str, count: int) -> None:
    source = {method: {"bottleneck": [3, 5], "targets": targets}}
    assert ParameterCounter(GATED_BASE)(configuration(source, GATED_BASE)) == (3 + 5) * count


def test_series_on_the_output_of_a_wide_map_is_as_wide_as_it() -> None:
    source = {"linear_series": {"bottleneck": 4, "targets": "query_key_value", "layers": [0]}}
    assert ParameterCounter(FUSED_BASE)(configuration(source, FUSED_BASE)) == 4 * 2 * 144


@pytest.mark.parametrize("method", ["linear_series", "linear_parallel"])
def test_defaults_are_those_of_the_authors_code(method: str) -> None:
    (setting,) = configuration({method: {"bottleneck": 4}}, GATED_BASE).methods
    values = setting.at(0)
    assert values is not None
    assert (values["activation"], values["scale"], values["dropout"], values["init"]) == ("tanh", 1.0, 0.0, "bert")
    assert values["targets"] == ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.mark.parametrize("method", ["linear_series", "linear_parallel"])
def test_a_site_that_the_layer_lacks_is_refused(method: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{method}\.targets: layer 0 has no 'x'; it has self_attn"):
        METHODS[method].check(GATED_BASE, layer=0, values={"bottleneck": 4, "targets": ("x",)})
