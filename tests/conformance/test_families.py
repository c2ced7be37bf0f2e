"""Every method on every family of models: it counts as it is built and runs, or validation refuses it."""

import pytest
import torch
import transformers
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.canonical import configuration as canonical
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.inject import inject
from autopeft.trainers.sites import measure
from tests.conformance.test_methods import ANY_SIZES, SIZES, disturb
from tests.models import EVERY, HIDDEN, IMAGE_MODELS, N_LAYERS, VOCABULARY_SIZE, build_base, example

_PLAIN = {"vocab_size": VOCABULARY_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TWO_STACKS = {**_PLAIN, "decoder_start_token_id": 0, "d_model": HIDDEN}
OTHERS: dict[str, PretrainedConfig] = {
    "t5": transformers.T5Config(**_TWO_STACKS, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
    "bart": transformers.BartConfig(
        **_TWO_STACKS,
        **{
            f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 48))
        },
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=64,
    ),
    "mixtral": transformers.MixtralConfig(
        **_PLAIN,
        hidden_size=HIDDEN,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=2,
    ),
}
"""Two stacks, with a bias by position and without, and experts whose weights are no linear maps."""


GATED, ROWS = "adaption_prompt", ("cartridge", "prefix_tuning")
NO_TOKENS = {name for name, method in METHODS.items() if method.at_input}
REFUSED: dict[str, set[str]] = {
    **{family: {GATED, *ROWS} for family in ("deberta-v2", "mpnet", "gptj", "falcon", "t5")},
    **{family: {GATED} for family in ("modernbert", "phi3", "gpt2", "gpt_neox")},
    **{family: NO_TOKENS for family in IMAGE_MODELS},
    "qwen2": {"road", "vblora"},
    "mixtral": {
        *("binary_adapter", "linear_parallel", "linear_series", "parallel_adapter", "s2ft", "serial_adapter"),
    },
}
"""What validation refuses with default settings: rows where attention takes none or has no maps of its own, tokens
where there are none, blocks wider than a head of the tiny model, and adapters of a feed-forward block of experts."""
USUAL = ("bert", "deberta-v2", "albert", "llama", "gpt2", "falcon", "vit", *OTHERS)
"""One of each kind of layer; the others take longer than they tell."""
FAMILIES = [family if family in USUAL else pytest.param(family, marks=pytest.mark.slow) for family in (*EVERY, *OTHERS)]


def build(family: str) -> PreTrainedModel:
    if family in EVERY:
        return build_base(family)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return AutoModel.from_config(OTHERS[family]).requires_grad_(False).eval()


def validated(method: str, shape: ModelShape) -> Configuration | None:
    """`method` with the first size that validation lets pass, None where it refuses every one."""
    size = METHODS[method].size_field.name
    for sizes in (SIZES.get(method, ANY_SIZES[0]), *ANY_SIZES):
        try:
            layers = [0] if METHODS[method].at_input else sorted({0, shape.n_layers - 1})
            return canonical({method: {size: sizes[0], "layers": layers}}, shape)
        except ConfigurationError:
            continue
    return None


def inputs(base: PreTrainedModel) -> dict[str, torch.Tensor]:
    given = example(base)
    return given | ({"decoder_input_ids": given["input_ids"]} if base.config.is_encoder_decoder else {})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_passes_validation_is_built_as_it_is_counted_and_acts(family: str) -> None:
    base = build(family)
    shape, given = measure(base, base.config), inputs(base)
    before = base(**given).last_hidden_state
    refused: set[str] = set()
    for method in METHODS:
        config = validated(method, shape)
        if config is None:
            refused.add(method)
            continue
        with inject(base, shape, config, seed=0) as adapters, torch.no_grad():
            assert adapters.n_parameters == count_parameters(config, shape).total, method
            disturb(adapters)
            after = base(**given).last_hidden_state
            assert torch.isfinite(after).all(), method
            assert not torch.equal(before, after), method
    assert refused == REFUSED.get(family, set())
