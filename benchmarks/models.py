"""Base models with random weights in the sizes of real ones, and rows of words to train them on."""

import csv
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
N_WORDS = 2000
"""Words that rows are made of; the rest of a vocabulary is there and never used, as most of it is in a small task."""
MARKERS = 40
"""The first words: one half of them speaks for class 0, the other for class 1."""

SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "roberta-base": ("RobertaConfig", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "qwen2-1.5b": (
        "Qwen2Config",
        {
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "llama-7b": ("LlamaConfig", {"vocab_size": 32000}),
}
"""Configuration class and what differs from its defaults (those of Llama are the 7B's)."""
TINY: dict[str, object] = {
    "vocab_size": N_WORDS + len(SPECIAL),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make_model(name: str, folder: Path, *, tiny: bool, causal: bool, device: str = "cpu") -> Path:
    """Write a model of `SHAPES` (`tiny`: of its kind, small) with its tokenizer; the folder.

    Args:
        name: Its row.
        folder: Where to.
        tiny: A few thousand weights a layer, to try a script.
        causal: With its language-model head; else the bare base.
        device: Where the weights are drawn.
    """
    config_class, sizes = SHAPES[name]
    small = {key: value for key, value in TINY.items() if key != "num_key_value_heads" or "Roberta" not in config_class}
    config = getattr(transformers, config_class)(
        **(sizes | (small if tiny else {})), bos_token_id=0, pad_token_id=1, eos_token_id=2
    )
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    torch.manual_seed(0)
    with torch.device(device):
        model = auto.from_config(config, dtype=torch.float32 if name == "roberta-base" else torch.bfloat16)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *words()))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    bos, pad, eos, unk, mask = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, pad_token=pad, eos_token=eos, unk_token=unk, mask_token=mask, cls_token=bos
    )


def words() -> tuple[str, ...]:
    """The vocabulary of the rows."""
    return tuple(f"w{index}" for index in range(N_WORDS))


def make_rows(folder: Path, *, tiny: bool, mean_tokens: int) -> Path:
    """Write train.csv and validation.csv: rows of words, of the class that most of their markers speak for.

    Lengths are log-normal around `mean_tokens` with the spread of real sentences (a standard deviation of 0.5 in the
    logarithm), so that padding costs what it does there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    for split, n_rows in (("train", 96 if tiny else 4000), ("validation", 32 if tiny else 1000)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for _ in range(n_rows):
                label = int(chance.integers(2))
                writer.writerow((_row(chance, label, mean_tokens), label))
    return folder


def _row(chance: np.random.Generator, label: int, mean_tokens: int) -> str:
    spread = 0.5
    length = int(np.clip(mean_tokens * np.exp(spread * chance.standard_normal() - spread**2 / 2), 4, 10 * mean_tokens))
    row = chance.integers(MARKERS, N_WORDS, length)
    half = MARKERS // 2
    markers = chance.integers(label * half, (label + 1) * half, max(1, length // 8))
    row[chance.choice(length, len(markers), replace=False)] = markers
    return " ".join(f"w{index}" for index in row)
