"""Virtual tokens and changed embeddings: where they stand, what heads and losses see of them, and in plain peft."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
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

from autopeft.errors import ConfigurationError, SpaceError, SpecError
from autopeft.spaces.canonical import configuration as canonical
from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from autopeft.trainers.adapters.prompts import DeptAdapter, PromptAdapter
from autopeft.trainers.inject import AdapterSet, build, inject
from autopeft.trainers.job import ModelSpec, TrainJob
from autopeft.trainers.model import load_model
from autopeft.trainers.peft_folder import write_folder
from autopeft.trainers.peft_prompts import check_kind
from autopeft.trainers.saved import load_adapter
from autopeft.trainers.sites import measure
from autopeft.trainers.trainer import check_length
from tests.configurations import configuration, setting
from tests.models import MODELS, build_base, save_model
from tests.trainers import support

LENGTH = 4
FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "gpt2", "opt", "llama", "gemma")


def prompt(method: str = "prompt_tuning", **fields: FieldValue) -> Configuration:
    return configuration(setting(method, (0,), **({"length": LENGTH} | fields)))


def dept(**fields: FieldValue) -> Configuration:
    return configuration(setting("dept", (0,), **({"rank": 3, "positions": 6} | fields)))


def only(adapters: AdapterSet):  # the one adapter
    return next(adapter for _, _, adapter in adapters.adapters())


def tokens(n: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(5, 50, (n, length), generator=torch.Generator().manual_seed(1))


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
        for parameter in adapters.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits, alone, atol=1e-5, rtol=1e-4)


def test_padding_on_the_left_moves_no_token_to_another_row_of_the_low_rank_pair() -> None:
    base = build_base("llama")
    shape, ids = measure(base, base.config), tokens(1, 5)
    seen: list[torch.Tensor] = []
    with inject(base, shape, dept(), seed=0) as adapters, torch.no_grad():
        nn.init.normal_(only(adapters).b)
        handle = base.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        base(input_ids=ids, attention_mask=torch.ones_like(ids))
        base(input_ids=functional.pad(ids, (2, 0)), attention_mask=functional.pad(torch.ones_like(ids), (2, 0)))
        handle.remove()
    torch.testing.assert_close(seen[1][:, 2:], seen[0])


def test_the_low_rank_pair_is_added_by_position_as_the_equation_says() -> None:
    base = build_base("bert")
    shape, ids = measure(base, base.config), tokens(2, 9)
    with inject(base, shape, dept(alpha=2.0), seed=0) as adapters, torch.no_grad():
        one = only(adapters)
        assert isinstance(one, DeptAdapter)
        nn.init.normal_(one.b)
        found = base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        change = torch.zeros(9, 32)
        change[:6] = 2.0 / 3**0.5 * one.a @ one.b
    with torch.no_grad():
        embeds = base.get_input_embeddings()(ids) + change
        wanted = base(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_with_a_cache_is_generation_without(name: str) -> None:
    model = drawn(AutoModelForCausalLM, name)
    shape, ids = measure(model.base_model, model.config), tokens(2, 5)
    both = configuration(*prompt().methods, *dept(positions=64).methods)
    with inject(model, shape, both, seed=0) as adapters, torch.no_grad():
        for parameter in adapters.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
        written = [
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, use_cache=cache, do_sample=False)  # type: ignore[operator]
            for cache in (True, False)
        ]
    assert torch.equal(*written)


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


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_a_trained_prompt_loads_in_plain_peft(method: str, tmp_path: Path) -> None:
    trainer = support.trainer(tmp_path, support.classification(tmp_path))
    own = tmp_path / "own"
    (report,) = trainer.run(TrainJob(configurations=(prompt(method),), seeds=(1,), epochs=1, output_dirs=(own,)))
    assert report.failure is None
    write_folder(own, tmp_path / "peft")
    base = load_model(ModelSpec(name=trainer.loaded.spec.name), kind="text-classification", n_labels=2).model
    plain, ids = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval(), tokens()
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        wanted = load_adapter(own)[0](input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask).logits, wanted, atol=1e-5, rtol=1e-4)


def test_a_kind_that_peft_has_no_prompts_for_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"prompt_tuning: peft has no model with virtual tokens for multiple-"):
        check_kind(prompt(), kind="multiple-choice")


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


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_encoder_of_p_tuning_is_counted(encoder: str) -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = canonical({"p_tuning": {"length": 5, "encoder": encoder, "width": 7}}, shape)
    space = SearchSpace.bind(
        SpaceDefinition.from_mapping({"p_tuning": {"length": 5, "encoder": encoder, "width": 7}}), shape
    )
    assert build(shape, config, seed=0).n_parameters == space.parameters(config)


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


def test_more_positions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    save_model("bert", tmp_path)
    spec = ModelSpec(name=str(tmp_path))
    check_length(spec, 60, virtual=4)
    with pytest.raises(SpecError, match=r"got 60 and 5 virtual tokens; .* at most 64 tokens .*max_length to 59"):
        check_length(spec, 60, virtual=5)
    with pytest.raises(SpecError, match="use fewer virtual tokens"):
        check_length(spec, 60, virtual=70)
