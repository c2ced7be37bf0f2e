"""Trained norms: what they compute, on every kind of norm, merged, and in plain peft."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from autopeft.errors import ConfigurationError
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.canonical import configuration as canonical
from autopeft.trainers.inject import inject, merge
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import load_model, reset_head
from autopeft.trainers.peft_folder import write_folder
from autopeft.trainers.saved import save_adapter
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.conformance.test_methods import disturb, run
from tests.models import MODELS, build_base, save_model, sentences

NORMS = configuration(setting("ln_tuning", (0, 2), enabled=1))


@pytest.mark.parametrize("name", list(MODELS))
def test_every_kind_of_norm_computes_with_the_trained_tensors(name: str) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    config = configuration(setting("ln_tuning", tuple(sorted({0, shape.n_layers - 1})), enabled=1))
    before = run(base)
    adapters = inject(base, shape, config, seed=0)
    assert adapters.n_parameters == count_parameters(config, shape).total
    torch.testing.assert_close(run(base), before)
    disturb(adapters, size=0.2)
    found = run(base)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    rows = dict(adapters.named_parameters())
    with torch.no_grad():
        for _, layer, adapter in adapters.adapters():
            for target in adapter.mergeable:
                norm = layers_of(base, shape)[layer].get_submodule(target)
                for key, tensor in norm.named_parameters():
                    kept.append((tensor, tensor.clone()))
                    tensor.copy_(rows[f"ln_tuning.{layer}.{target.replace('.', '_')}.{key}"])
        adapters.remove()
        torch.testing.assert_close(run(base), found, atol=1e-5, rtol=1e-4)
        for tensor, old in kept:
            tensor.copy_(old)
    assert torch.equal(run(base), before)
    assert (found - before).abs().max() > 1e-3


def test_merged_norms_compute_the_same_and_come_back() -> None:
    base = build_base("llama")
    shape = measure(base, base.config)
    before = run(base)
    adapters = inject(base, shape, NORMS, seed=0)
    disturb(adapters, size=0.2)
    acting = run(base)
    merged = merge(adapters, base, shape)
    torch.testing.assert_close(run(base), acting, atol=1e-5, rtol=1e-4)
    merged.unmerge().remove()
    assert torch.equal(run(base), before)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_plain_peft_loads_trained_norms(name: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / "base")
    loaded = load_model(ModelSpec(name=str(folder)), kind="text-classification", n_labels=3)
    reset_head(loaded, 1)
    adapters = inject(loaded.model, loaded.shape, NORMS, seed=0)
    disturb(adapters, size=0.2)
    batch = loaded.tokenizer(sentences(4), return_tensors="pt", padding=True, return_token_type_ids=False)
    expected = loaded.model(**batch).logits
    save_adapter(tmp_path / "own", adapters, loaded=loaded, task={})
    write_folder(tmp_path / "own", tmp_path / "peft")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(theirs(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_it_has_no_size() -> None:
    base = build_base("bert")
    with pytest.raises(ConfigurationError, match=r"ln_tuning\.enabled: got 2, a value outside 0 to 1"):
        canonical({"ln_tuning": {"enabled": 2}}, measure(base, base.config))


def test_the_first_and_the_last_norm_of_a_layer_are_its_attentions_and_its_mlps() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    parts = {"first": "attention_output_LayerNorm", "last": "output_LayerNorm"}
    for norms, name in parts.items():
        config = canonical({"ln_tuning": {"enabled": 1, "norms": norms, "layers": [1]}}, shape)
        with inject(base, shape, config, seed=0) as adapters:
            assert {row for row, _ in adapters.named_parameters()} == {
                f"ln_tuning.1.{name}.{tensor}" for tensor in ("weight", "bias")
            }
            assert count_parameters(config, shape).total == adapters.n_parameters == 64
