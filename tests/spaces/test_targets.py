"""Target words."""

import pytest

from autopeft.errors import SpaceError
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


def test_a_role_that_the_architecture_lacks_is_unknown() -> None:
    with pytest.raises(SpaceError, match="'value' is no target"):
        resolve(["value"], MODELS["fused"], 0)
