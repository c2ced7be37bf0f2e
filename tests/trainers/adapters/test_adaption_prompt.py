"""Gated rows beside attention: the formula, peft's own, and beside prefixes."""

import pytest
import torch
from peft import AdaptionPromptConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.canonical import configuration as canonical
from autopeft.spaces.configuration import Configuration
from autopeft.trainers.adapters.adaption_prompt import AdaptionPromptAdapter
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import MODELS, build_base

LENGTH = 4


def gated(*layers: int) -> Configuration:
    return configuration(setting("adaption_prompt", layers or (0, 2), length=LENGTH))


def tokens(n: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(5, 50, (n, length), generator=torch.Generator().manual_seed(1))


def opened(adapters: AdapterSet) -> list[AdaptionPromptAdapter]:
    """The adapters, with their gates at half a turn."""
    found = [adapter for _, _, adapter in adapters.adapters() if isinstance(adapter, AdaptionPromptAdapter)]
    with torch.no_grad():
        for adapter in found:
            adapter.gate.fill_(0.5)
    return found


def drawn(name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MODELS[name].config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else None
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_is_what_peft_computes(name: str, attention: str) -> None:
    model = drawn(name)
    model.config._attn_implementation = attention
    shape, ids = measure(model.base_model, model.config), tokens()
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    with inject(model, shape, gated(1, 2), seed=0) as adapters, torch.no_grad():
        closed = model(input_ids=ids, attention_mask=mask).logits
        rows = opened(adapters)
        ours = model(input_ids=ids, attention_mask=mask).logits
    config = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=LENGTH, adapter_layers=2)
    theirs = get_peft_model(model, config).eval()
    with torch.no_grad():
        for layer, adapter in zip((1, 2), rows, strict=True):
            module = theirs.base_model.model.model.layers[layer].self_attn
            module.adaption_prompt.copy_(adapter.prompt[None])
            module.adaption_gate.copy_(adapter.gate)
        found = theirs(input_ids=ids, attention_mask=mask).logits
    assert (ours - closed).abs().max() > 1e-3
    torch.testing.assert_close(ours, found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_other_methods_on_the_maps_do_not_change_what_the_rows_are(name: str) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    keys = [site.name for site in shape.layers[0] if site.role in ("key", "value")]
    lora = setting("lora", (0,), rank=2, targets=tuple(keys))
    query = torch.randn(2, shape.n_heads, 3, shape.head_dim, generator=torch.Generator().manual_seed(2))
    mixed = []
    for config in (gated(0), configuration(*gated(0).methods, lora)):
        with inject(base, shape, config, seed=0) as adapters, torch.no_grad():
            (one,) = opened(adapters)
            torch.nn.init.normal_(one.prompt, generator=torch.Generator().manual_seed(3))
            mixed.append(one.mixed(query, scale=None))
    assert torch.equal(*mixed)


def test_it_stands_beside_a_prefix_and_each_comes_off_alone() -> None:
    base = build_base("llama")
    shape, ids = measure(base, base.config), tokens()
    both = configuration(*gated(0, 2).methods, setting("prefix_tuning", (0, 1), length=3))
    with torch.no_grad():
        before = base(input_ids=ids).last_hidden_state
        with inject(base, shape, both, seed=0) as adapters:
            with_prefix = base(input_ids=ids).last_hidden_state
            opened(adapters)
            with_both = base(input_ids=ids).last_hidden_state
        after = base(input_ids=ids).last_hidden_state
    assert (with_prefix - before).abs().max() > 1e-4
    assert (with_both - with_prefix).abs().max() > 1e-4
    assert torch.equal(before, after)


def test_generation_with_a_cache_is_generation_without() -> None:
    model = drawn("llama")
    shape, ids = measure(model.base_model, model.config), tokens(2, 5)
    with inject(model, shape, gated(), seed=0) as adapters, torch.no_grad():
        opened(adapters)
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
        written = [model.generate(ids, use_cache=cache, **options) for cache in (True, False)]  # type: ignore[operator]
    assert torch.equal(*written)


def test_a_response_of_half_is_half_of_what_the_gate_lets_through() -> None:
    base = build_base("llama")
    shape, query = measure(base, base.config), torch.randn(1, 4, 3, 8, generator=torch.Generator().manual_seed(2))
    with inject(base, shape, gated(0), seed=0) as adapters, torch.no_grad():
        (one,) = opened(adapters)
        whole = one.mixed(query, scale=None)
        one.response = 0.5
        torch.testing.assert_close(one.mixed(query, scale=None), whole / 2)


def test_layers_without_a_key_and_a_value_map_are_refused() -> None:
    base = build_base("gpt2")
    with pytest.raises(ConfigurationError, match=r"adaption_prompt: layer 0 of this gpt2 model has 0 key projections"):
        canonical({"adaption_prompt": {"length": 4}}, measure(base, base.config))
    base = build_base("mpnet")
    with pytest.raises(ConfigurationError, match=r"adaption_prompt: attention in layer 0 of this mpnet model takes no"):
        canonical({"adaption_prompt": {"length": 4}}, measure(base, base.config))
