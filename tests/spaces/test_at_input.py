"""Methods that act once, at the input: their place in a space, and their counts."""

import pytest
import torch
from transformers import T5Config, T5Model

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.canonical import configuration as canonical
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.methods import METHODS
from autopeft.spaces.space import SearchSpace
from autopeft.trainers.inject import build
from autopeft.trainers.sites import measure
from tests.models import build_base


def test_a_method_at_the_input_is_once_in_a_space_and_part_of_layer_0() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    source = {"layers": "subset", "prompt_tuning": {"length": "choice(0, 5, 9)"}, "lora": {"rank": "choice(0, 2)"}}
    space = SearchSpace.bind(SpaceDefinition.from_mapping(source), shape)
    found = list(space.configurations())
    assert len({one.id for one in found}) == space.size().configurations
    # seven sets of layers with lora, of which those with layer 0 have the prompt in three ways; and a prompt alone
    assert len(found) == 3 * 1 + 4 * 3 + 2
    for one in found:
        assert one.method("prompt_tuning") is None or one.method("prompt_tuning").layers == (0,)  # type: ignore[union-attr]
        assert space.decode(space.encode(one)) == one


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"prompt_tuning": {"length": "per_layer(choice(0, 5))"}}, r"space\.prompt_tuning\.length: acts once, at the"),
        ({"prompt_tuning": {"length": "ramp(choice(1, 5))"}}, r"space\.prompt_tuning\.length: acts once, at the input"),
        ({"layers": [1, 2], "prompt_tuning": {"length": 5}}, r"prompt_tuning\.length: acts at the input, .* has 1, 2"),
    ],
)
def test_a_space_that_spreads_it_is_refused(source: dict[str, object], message: str) -> None:
    base = build_base("bert")
    with pytest.raises(SpaceError, match=message):
        SearchSpace.bind(SpaceDefinition.from_mapping(source), measure(base, base.config))


def test_a_hand_written_one_on_another_layer_is_refused() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    assert canonical({"prompt_tuning": {"length": 5}}, shape).methods[0].layers == (0,)
    with pytest.raises(ConfigurationError, match=r"prompt_tuning: acts once, at the input, .* it is on layer 2"):
        canonical({"prompt_tuning": {"length": 5, "layers": [2]}}, shape)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_encoder_of_p_tuning_is_counted(encoder: str) -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = canonical({"p_tuning": {"length": 5, "encoder": encoder, "width": 7}}, shape)
    space = SearchSpace.bind(
        SpaceDefinition.from_mapping({"p_tuning": {"length": 5, "encoder": encoder, "width": 7}}), shape
    )
    assert build(shape, config, seed=0).n_parameters == space.parameters(config)


def test_the_numbers_of_dept_on_t5_base_are_those_of_a_prompt_of_100_tokens() -> None:
    config = T5Config(vocab_size=8, d_model=768, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    with torch.device("meta"):
        shape = measure(T5Model(config), config)
    values = {"rank": 45, "length": 40, "positions": 256}
    assert METHODS["dept"].parameters(shape, layer=0, values=values) == 76_800
    assert METHODS["prompt_tuning"].parameters(shape, layer=0, values={"length": 100}) == 76_800
