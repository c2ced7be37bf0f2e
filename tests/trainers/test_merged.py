"""Adapters merged into their base, opened by plain transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration
from autopeft.trainers.inject import inject
from autopeft.trainers.job import TaskSpec
from autopeft.trainers.merged import check_merge, write_merged
from autopeft.trainers.model import name_labels, reset_head
from autopeft.trainers.peft_folder import expected_info
from autopeft.trainers.saved import save_adapter
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers.support import classification, language, numbers, trainer

IDS = torch.tensor([[1, 6, 7, 8, 9, 2], [1, 11, 12, 13, 14, 2]])


def lora(name: str) -> Configuration:
    return configuration(setting("lora", (0, 2), rank=4, targets=MODELS[name].query_value))


def merged(made: Trainer, config: Configuration, folder: Path, **task: object) -> torch.Tensor:
    """Our logits, with the model merged in `folder / "merged"`; the trainer's model is as before afterwards."""
    loaded = made.loaded
    reset_head(loaded, 1)
    before = loaded.model(IDS).logits
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    expected = loaded.model(IDS).logits
    save_adapter(folder / "ours", adapters, loaded=loaded, task=task)
    adapters.remove()
    write_merged(made, folder / "ours", folder / "merged")
    torch.testing.assert_close(loaded.model(IDS).logits, before, atol=0, rtol=0)
    assert (expected - before).abs().max() > 1e-3
    return expected


def with_task(tmp_path: Path, task: TaskSpec, name: str) -> Trainer:
    return trainer(tmp_path, task, model=name)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "gpt2", "modernbert"])
def test_plain_transformers_computes_the_same_and_knows_the_labels(name: str, tmp_path: Path) -> None:
    made = with_task(tmp_path, classification(tmp_path), name)
    expected = merged(made, lora(name), tmp_path, labels=["no", "yes"])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(IDS).logits, expected, atol=2e-6, rtol=0)
    assert plain.config.id2label == {0: "no", 1: "yes"}
    assert plain.config.pad_token_id == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("baran")["input_ids"][0] == 1


def test_a_language_model_keeps_its_cache(tmp_path: Path) -> None:
    made = with_task(tmp_path, language(tmp_path), "llama")
    expected = merged(made, lora("llama"), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(IDS).logits, expected, atol=5e-6, rtol=0)
    assert plain.config.use_cache
    assert not made.loaded.model.config.use_cache


def test_a_head_of_one_output_is_marked_as_a_regression(tmp_path: Path) -> None:
    made = with_task(tmp_path, numbers(tmp_path), "bert")
    merged(made, lora("bert"), tmp_path, labels=[])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert (plain.config.problem_type, plain.config.num_labels) == ("regression", 1)


@pytest.mark.parametrize(
    "parts",
    [
        setting("mola", (0,), experts=2, targets=MODELS["bert"].query_value),
        setting("prefix_tuning", (0,), length=2),
        setting("serial_adapter", (0,), bottleneck=2),
    ],
    ids=lambda part: part.method,
)
def test_what_is_no_change_of_weights_is_refused_before_anything_is_loaded(parts: object, tmp_path: Path) -> None:
    made = with_task(tmp_path, classification(tmp_path), "bert")
    config = configuration(parts)  # type: ignore[arg-type]  # a method's setting
    info = expected_info(made._model, made.shape, config, kind="text-classification")
    with pytest.raises(ConfigurationError, match="cannot be merged into the base weights"):
        check_merge(info)


def test_labels_of_another_count_are_left_alone(tmp_path: Path) -> None:
    made = with_task(tmp_path, classification(tmp_path), "bert")
    before = dict(made.loaded.model.config.id2label)
    name_labels(made.loaded.model.config, "text-classification", ["a", "b", "c"])
    assert made.loaded.model.config.id2label == before
