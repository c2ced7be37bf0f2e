from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.errors import ConfigurationError, ModelError
from autopeft.spaces.model_shape import Role
from autopeft.trainers.adapters.prefix import PrefixAdapter
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.sites import attention_of, layers_of, measure
from tests.configurations import configuration, setting
from tests.models import MODELS, build_base

WITH_PREFIX = [name for name, row in MODELS.items() if row.prefix]
CAUSAL = [name for name in WITH_PREFIX if MODELS[name].causal]


def attach(base: PreTrainedModel, lengths: dict[int, int], *, size: float = 1.0) -> AdapterSet:
    shape = measure(base.base_model, base.config)
    config = configuration(setting("prefix_tuning", tuple(lengths), length=list(lengths.values())))
    adapters = inject(base, shape, config, seed=0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter, std=size, generator=torch.Generator().manual_seed(parameter.numel()))
    return adapters


def tokens(n: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(5, 50, (n, length), generator=torch.Generator().manual_seed(1))


def build_language_model(name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MODELS[name].config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else None
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_one_layer_attends_to_prefix_and_sequence_as_the_formula_says(name: str) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    layer = layers_of(base, shape)[1]
    attention = attention_of(layer, shape.layers[1])
    assert attention is not None
    seen: dict[str, torch.Tensor] = {}
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, query, key, value, mask, **options):
        if module is attention:
            seen.update(query=query, key=key, value=value)
        return plain(module, query, key, value, mask, **options)

    with attach(base, {1: 3}) as adapters:
        site = next(row.name for row in shape.layers[1] if row.role is Role.ATTENTION_OUTPUT)
        layer.get_submodule(site).register_forward_pre_hook(lambda _, args: seen.update(mixed=args[0]))
        ALL_ATTENTION_FUNCTIONS["sdpa"] = spy
        try:
            base(input_ids=tokens())
        finally:
            del ALL_ATTENTION_FUNCTIONS["sdpa"]
    (_, _, prefix) = next(adapters.adapters())
    assert isinstance(prefix, PrefixAdapter)
    keys, values = seen["key"], seen["value"]
    assert torch.equal(keys[:, :, :3], prefix.key.expand(2, -1, -1, -1))
    assert torch.equal(values[:, :, :3], prefix.value.expand(2, -1, -1, -1))
    groups = shape.n_heads // shape.n_kv_heads
    scores = seen["query"] @ keys.repeat_interleave(groups, dim=1).mT / shape.head_dim**0.5
    if shape.causal:
        hidden = torch.triu(torch.ones(7, 7, dtype=torch.bool), diagonal=1)
        scores = scores.masked_fill(functional.pad(hidden, (3, 0)), -torch.inf)
    mixed = scores.softmax(-1) @ values.repeat_interleave(groups, dim=1)
    torch.testing.assert_close(mixed.transpose(1, 2).flatten(2), seen["mixed"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in WITH_PREFIX if name != "gemma2"])  # its soft cap has no SDPA
@pytest.mark.parametrize("padded", ["none", "right", "left", "no mask"])
def test_eager_and_sdpa_agree(name: str, padded: str) -> None:
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.long)
    if padded == "right":
        mask[0, 4:] = 0
    if padded == "left":
        mask[0, :3] = 0
    outputs = []
    for implementation in ("eager", "sdpa"):
        base = build_base(name, attention=implementation)
        with attach(base, {0: 2, measure(base, base.config).n_layers - 1: 5}):
            outputs.append(base(input_ids=ids, attention_mask=None if padded == "no mask" else mask).last_hidden_state)
    visible = mask.bool()
    torch.testing.assert_close(outputs[0][visible], outputs[1][visible], atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_no_query_sees_the_future(name: str) -> None:
    base = build_base(name)
    first, second = tokens(1, 8), tokens(1, 8)
    second[0, 5:] = (second[0, 5:] + 7) % 40 + 5
    with attach(base, {0: 2, 2: 3}):
        a, b = (base(input_ids=ids).last_hidden_state for ids in (first, second))
        none, full = (
            base(input_ids=first, attention_mask=mask).last_hidden_state for mask in (None, torch.ones_like(first))
        )
    torch.testing.assert_close(a[:, :5], b[:, :5], atol=1e-5, rtol=1e-5)
    assert (a[:, 5:] - b[:, 5:]).abs().max() > 1e-3
    torch.testing.assert_close(none, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_every_position_sees_the_prefix(name: str) -> None:
    base = build_base(name)
    with attach(base, {2: 3}) as adapters:
        output = base(input_ids=tokens(1)).last_hidden_state
        for position in (0, 6):
            adapters.zero_grad()
            output[0, position].square().sum().backward(retain_graph=True)
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.parameters())


@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_a_cache_is_generation_without(name: str) -> None:
    model = build_language_model(name)
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    ids[0, :2], mask[0, :2] = 0, 0
    with attach(model, {0: 2, 2: 4}):
        options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        options |= {"eos_token_id": None, "pad_token_id": 0}
        cached = model.generate(ids, attention_mask=mask, use_cache=True, **options)
        plain = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_models_attention_comes_back_with_the_last_prefix(implementation: str) -> None:
    base = build_base("bert", attention=implementation)
    adapters = attach(base, {0: 1, 2: 1})
    assert base.config._attn_implementation == f"autopeft_attention_{implementation}"
    adapters.remove()
    assert base.config._attn_implementation == implementation


def test_a_second_model_is_left_alone() -> None:
    one, other = build_base("bert"), build_base("bert")
    before = other(input_ids=tokens()).last_hidden_state
    with attach(one, {0: 3}):
        assert other.config._attn_implementation == "sdpa"
        assert torch.equal(other(input_ids=tokens()).last_hidden_state, before)


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if not row.prefix])
def test_attention_of_a_models_own_making_is_refused(name: str) -> None:
    base = build_base(name)
    implementation = base.config._attn_implementation
    with pytest.raises(ConfigurationError, match=r"in layer 0 .*takes no rows beside .*leave prefix_tuning out"):
        attach(base, {0: 1})
    assert base.config._attn_implementation == implementation
    with inject(base, measure(base, base.config), configuration(), seed=0):
        pass


def test_an_attention_implementation_without_masks_is_refused() -> None:
    base = build_base("bert")
    base.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ConfigurationError, match=r"attention 'flex_attention' takes no rows beside .*sdpa or eager"):
        attach(base, {0: 1})


def test_a_model_switched_to_an_implementation_without_masks_is_refused() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    base.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ModelError, match=r"implementation 'flex_attention' of this bert model takes no rows beside"):
        inject(base, shape, configuration(setting("prefix_tuning", (0,), length=2)), seed=0)


def test_heads_that_do_not_fit_the_projections_are_refused() -> None:
    base = build_base("llama")
    shape = replace(measure(base, base.config), n_kv_heads=3)
    with pytest.raises(ConfigurationError, match="layer 0 has a key projection of width 16, the model's heads say 24"):
        inject(base, shape, configuration(setting("prefix_tuning", (0,), length=2)), seed=0)


def test_our_mask_functions_are_the_models_own() -> None:
    with attach(build_base("bert"), {0: 1}):
        assert ALL_MASK_ATTENTION_FUNCTIONS["autopeft_attention_sdpa"] is ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
