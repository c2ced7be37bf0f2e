"""Virtual tokens and changed embeddings: where they stand, what heads and losses see of them, and in plain peft."""

from dataclasses import replace

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from autopeft.errors import ConfigurationError, ModelError
from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.trainers.adapters.prompts import DeptAdapter, PromptAdapter
from autopeft.trainers.inject import AdapterSet, build, inject
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import MODELS, build_base

LENGTH = 4
FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "gpt2", "opt", "llama", "gemma")


def prompt(method: str = "prompt_tuning", **fields: FieldValue) -> Configuration:
    return configuration(setting(method, (0,), **({"length": LENGTH} | fields)))


def dept(**fields: FieldValue) -> Configuration:
    return prompt("dept", **({"rank": 3, "positions": 6} | fields))


def only(adapters: AdapterSet):  # the one adapter
    return next(adapter for _, _, adapter in adapters.adapters())


def tokens(n: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(5, 50, (n, length), generator=torch.Generator().manual_seed(1))


def disturb(adapters: AdapterSet) -> None:
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))


def drawn(auto: type, name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return auto.from_config(MODELS[name].config()).eval().requires_grad_(False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name in MODELS])
def test_the_sequence_is_as_if_the_rows_had_been_tokens_of_it(name: str) -> None:
    base = build_base(name)
    shape, ids = measure(base, base.config), tokens()
    table = base.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    chosen = tokens(1, LENGTH) + 1
    with inject(base, shape, prompt(), seed=0) as adapters, torch.no_grad():
        one = only(adapters)
        assert isinstance(one, PromptAdapter)
        one.encoder.get_parameter("embedding.weight").copy_(table(chosen)[0])
        found = base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    whole = torch.cat((chosen.expand(len(ids), -1), ids), dim=1)
    with torch.no_grad():
        wanted = base(input_ids=whole, attention_mask=torch.ones_like(whole)).last_hidden_state
    assert found.shape[1] == ids.shape[1]
    torch.testing.assert_close(found[:, 1:], wanted[:, LENGTH + 1 :], atol=1e-5, rtol=1e-4)
    first = wanted[:, LENGTH] if MODELS[name].causal else wanted[:, 0]
    torch.testing.assert_close(found[:, 0], first, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_padding_on_the_right_changes_nothing(name: str) -> None:
    model = drawn(AutoModelForSequenceClassification, name)
    model.config.pad_token_id = 0
    shape, ids = measure(model.base_model, model.config), tokens(1, 5)
    padded, mask = functional.pad(ids, (0, 3)), functional.pad(torch.ones_like(ids), (0, 3))
    with inject(model, shape, configuration(*prompt().methods, *dept().methods), seed=0) as adapters, torch.no_grad():
        disturb(adapters)
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["roberta", "llama", "opt"])
def test_padding_on_the_left_changes_nothing_where_positions_leave_it_out(name: str) -> None:
    base = build_base(name)
    shape, ids = measure(base, base.config), tokens(1, 5)
    padded, mask = functional.pad(ids, (2, 0)), functional.pad(torch.ones_like(ids), (2, 0))
    with torch.no_grad():
        bare = base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        torch.testing.assert_close(base(input_ids=padded, attention_mask=mask)[0][:, 2:], bare, atol=1e-5, rtol=1e-4)
    with inject(base, shape, configuration(*prompt().methods, *dept().methods), seed=0) as adapters, torch.no_grad():
        disturb(adapters)
        alone = base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        found = base(input_ids=padded, attention_mask=mask).last_hidden_state
    first = 0 if shape.causal else 1  # there an encoder has its prompt
    torch.testing.assert_close(found[:, 2 + first :], alone[:, first:], atol=1e-5, rtol=1e-4)


def test_dept_is_a_prompt_before_embeddings_changed_by_position_as_the_equation_says() -> None:
    base = build_base("bert")
    shape, ids = measure(base, base.config), tokens(2, 9)
    with inject(base, shape, dept(alpha=2.0), seed=0) as adapters, torch.no_grad():
        one = only(adapters)
        assert isinstance(one, DeptAdapter)
        nn.init.normal_(one.by_width)
        found = base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        change = torch.zeros(9, 32)
        change[:6] = 2.0 / 3**0.5 * one.by_position @ one.by_width
        rows = one.rows()
    with torch.no_grad():
        embeds = torch.cat((rows.expand(2, -1, -1), base.get_input_embeddings()(ids) + change), dim=1)
        wanted = base(inputs_embeds=embeds, attention_mask=torch.ones(2, 9 + LENGTH)).last_hidden_state
    torch.testing.assert_close(found[:, 1:], wanted[:, LENGTH + 1 :], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_generation_with_a_cache_is_generation_without_and_padding_moves_nothing(name: str) -> None:
    model = drawn(AutoModelForCausalLM, name)
    shape, ids = measure(model.base_model, model.config), tokens(2, 5)
    both = configuration(*prompt("p_tuning").methods, *dept(positions=64).methods)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with inject(model, shape, both, seed=0) as adapters, torch.no_grad():
        disturb(adapters)
        written = [
            model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=cache, **options)  # type: ignore[operator]
            for cache in (True, False)
        ]
        padded, mask = functional.pad(ids, (3, 0)), functional.pad(torch.ones_like(ids), (3, 0))
        after_padding = model.generate(padded, attention_mask=mask, **options)  # type: ignore[operator]
    assert torch.equal(*written)
    assert torch.equal(after_padding[:, 3:], written[0])


T5 = T5Config(vocab_size=55, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)


def test_an_encoder_decoder_has_them_before_its_source() -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5).eval().requires_grad_(False)
    shape = measure(model.base_model, model.config)
    ids, target, chosen = tokens(2, 6), tokens(2, 3), tokens(1, LENGTH) + 1
    with inject(model, shape, prompt(), seed=0) as adapters, torch.no_grad():
        only(adapters).encoder.get_parameter("embedding.weight").copy_(model.get_input_embeddings()(chosen)[0])
        mask = torch.ones_like(ids)
        found = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits
        texts = [
            model.generate(ids, attention_mask=mask, max_new_tokens=5, use_cache=cache, do_sample=False)
            for cache in (True, False)
        ]
    whole = torch.cat((chosen.expand(2, -1), ids), dim=1)
    with torch.no_grad():
        wanted = model(input_ids=whole, attention_mask=torch.ones_like(whole), decoder_input_ids=target).logits
        text = model.generate(whole, attention_mask=torch.ones_like(whole), max_new_tokens=5, do_sample=False)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], text)


@pytest.mark.parametrize(
    ("auto", "name", "task"),
    [
        (AutoModelForSequenceClassification, "bert", "SEQ_CLS"),
        (AutoModelForSequenceClassification, "roberta", "SEQ_CLS"),
        (AutoModelForTokenClassification, "bert", "TOKEN_CLS"),
        (AutoModelForCausalLM, "gpt2", "CAUSAL_LM"),
        (AutoModelForCausalLM, "llama", "CAUSAL_LM"),
    ],
)
def test_peft_computes_the_same(auto: type, name: str, task: str) -> None:
    model = drawn(auto, name)
    shape, ids = measure(model.base_model, model.config), tokens(3, 7)
    mask = torch.ones_like(ids)
    with inject(model, shape, prompt(init="random"), seed=0) as adapters, torch.no_grad():
        ours = model(input_ids=ids, attention_mask=mask).logits
        rows = only(adapters).rows()
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH)
    theirs = get_peft_model(model, config).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(rows)
        found = theirs(input_ids=ids, attention_mask=mask).logits
    found = found[:, -ids.shape[1] :] if found.dim() == 3 else found
    torch.testing.assert_close(ours, found, atol=1e-5, rtol=1e-4)


def test_more_than_a_mask_of_padding_is_refused() -> None:
    base = build_base("llama")
    ids = tokens()
    refused = pytest.raises(ModelError, match=r"attention_mask: got 4 dimensions; virtual tokens have a place in")
    with inject(base, measure(base, base.config), prompt(), seed=0), refused:
        base(input_ids=ids, attention_mask=torch.ones(2, 1, 7, 7))


def test_a_model_that_reads_the_tokens_numbers_again_is_refused() -> None:
    base = build_base("llama")
    shape = measure(base, base.config)
    base.embed_tokens_per_layer = nn.Embedding(3, 3)
    with pytest.raises(ModelError, match=r"layers of LlamaModel read the tokens' numbers again, .* have none"):
        inject(base, shape, prompt(), seed=0)


def test_a_model_without_token_embeddings_is_refused() -> None:
    base = build_base("llama")
    shape = replace(measure(base, base.config), vocabulary_size=0)
    with pytest.raises(ConfigurationError, match="dept: this llama model embeds no tokens"):
        build(shape, dept(), seed=0)
    base.set_input_embeddings(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="PromptAdapter: LlamaModel embeds no tokens"):
        inject(base, measure(build_base("llama"), base.config), prompt(), seed=0)


def test_routed_experts_balance_the_same_tokens_whatever_the_padding() -> None:
    base = build_base("llama")
    shape, ids = measure(base, base.config), tokens(1, 5)
    beside = configuration(*prompt().methods, setting("mola", (1,), experts=4, rank=2, targets=("mlp.up_proj",)))
    losses = []
    with inject(base, shape, beside, seed=0) as adapters:
        adapters.train()
        for padding in (0, 4):
            mask = functional.pad(torch.ones_like(ids), (0, padding))
            base(input_ids=functional.pad(ids, (0, padding)), attention_mask=mask)
            losses.append(adapters.penalty())
    torch.testing.assert_close(losses[0], losses[1])


def test_a_prompt_starts_from_tokens_of_the_vocabulary_and_equal_seeds_agree() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    rows = []
    for seed in (1, 1, 2):
        with inject(base, shape, prompt(), seed=seed) as adapters:
            rows.append(only(adapters).rows().detach().clone())
    table = base.get_input_embeddings().weight
    assert all((table == row).all(dim=1).any() for row in rows[0])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
