"""Trained embeddings of a range of tokens: what peft computes, wherever the model uses the matrix."""

import copy
from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.canonical import configuration as canonical
from autopeft.trainers.adapters.tokens import TokensAdapter
from autopeft.trainers.inject import inject
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import load_model, reset_head
from autopeft.trainers.peft_format import save_peft
from autopeft.trainers.sites import measure
from tests.conformance.test_methods import disturb
from tests.models import HIDDEN, VOCABULARY_SIZE, build_base, save_model, sentences

_PLAIN = {"vocab_size": VOCABULARY_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_STACKS = {**_PLAIN, "decoder_start_token_id": 0, "d_model": HIDDEN}
_DECODER = {
    **_PLAIN,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
}
BART = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 48))}
MODELS: dict[str, PretrainedConfig] = {
    "untied": transformers.LlamaConfig(**_DECODER, tie_word_embeddings=False),
    "tied": transformers.LlamaConfig(**_DECODER, tie_word_embeddings=True),
    "scaled": transformers.Gemma3TextConfig(**_DECODER, sliding_window=8),
    "t5": transformers.T5Config(**_STACKS, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
    "bart": transformers.BartConfig(**_STACKS, **BART, encoder_attention_heads=4, decoder_attention_heads=4),
}
"""A map to the vocabulary of its own, one tied to the embedding, an embedding that scales, and two stacks."""


def built(name: str) -> PreTrainedModel:
    auto = transformers.AutoModelForSeq2SeqLM if name in ("t5", "bart") else AutoModelForCausalLM
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return auto.from_config(MODELS[name]).requires_grad_(False).eval()


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_peft_computes(name: str) -> None:
    model = built(name)
    shape = measure(model.base_model, model.config)
    ids = torch.arange(3, 15).view(2, 6)
    given = {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if shape.decoder_layers else {})
    bare = model(**given).logits
    config = peft.TrainableTokensConfig(token_indices=list(range(5, 9)))
    twin = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with inject(model, shape, canonical({"trainable_tokens": {"tokens": 4, "first": 5}}, shape), seed=0) as adapters:
        assert torch.equal(model(**given).logits, bare), "nothing changes at the start"
        disturb(adapters)
        (rows,) = adapters.parameters()
        theirs = [tensor for key, tensor in twin.named_parameters() if key.endswith("trainable_tokens_delta.default")]
        assert {tensor.shape for tensor in theirs} == {rows.shape}
        with torch.no_grad():
            for tensor in theirs:
                tensor.copy_(rows)
        after = model(**given).logits
        torch.testing.assert_close(after, twin(**given).logits)
        assert (after - bare).abs().max() > 1e-3
        after.square().mean().backward()
        assert rows.grad is not None
        assert rows.grad.abs().sum(dim=1).min() > 0, "all four stand in the rows"
    assert torch.equal(model(**given).logits, bare)


def test_other_tokens_stay_as_they_are() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    embedding = base.get_input_embeddings()
    ids = torch.arange(VOCABULARY_SIZE)
    bare = embedding(ids)
    with inject(base, shape, canonical({"trainable_tokens": {"tokens": 3, "first": 10}}, shape), seed=0) as adapters:
        ((_, _, adapter),) = adapters.adapters()
        assert isinstance(adapter, TokensAdapter)
        assert torch.equal(adapter.rows, bare[10:13])
        disturb(adapters)
        changed = (embedding(ids) - bare).abs().amax(dim=1) > 0
    assert changed.nonzero().flatten().tolist() == [10, 11, 12]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"tokens": 4, "first": 52}, r"tokens: 4 from number 52 on end beyond the 55 tokens .* use up to 3, or"),
        ({"tokens": 56}, r"tokens: 56 from number 0 on"),
        ({"tokens": 1, "first": -1}, r"trainable_tokens\.first: got -1"),
        ({"tokens": [2, 2, 2]}, r"trainable_tokens"),
        ({"tokens": 2, "layers": [1]}, r"counts as part of layer 0; it is on layer 1"),
    ],
)
def test_tokens_that_are_not_there_are_refused(block: dict[str, object], message: str) -> None:
    base = build_base("bert")
    with pytest.raises(ConfigurationError, match=message):
        canonical({"trainable_tokens": block}, measure(base, base.config))


def test_plain_peft_reads_the_folder(tmp_path: Path) -> None:
    folder = save_model("bert", tmp_path / "base")
    loaded = load_model(ModelSpec(name=str(folder)), kind="text-classification", n_labels=3)
    reset_head(loaded, 1)
    assert loaded.tokenizer is not None
    batch = loaded.tokenizer(sentences(4), return_tensors="pt", padding=True, return_token_type_ids=False)
    bare = loaded.model(**batch).logits
    adapters = inject(
        loaded.model, loaded.shape, canonical({"trainable_tokens": {"tokens": 50, "first": 5}}, loaded.shape), seed=0
    )
    disturb(adapters)
    expected = loaded.model(**batch).logits
    save_peft(tmp_path / "peft", adapters, loaded=loaded)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    torch.testing.assert_close(theirs(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert (expected - bare).abs().max() > 1e-3
