"""The kinds of task by name, and the class of transformers that each is learned with."""

from collections.abc import Mapping
from typing import Any, Final

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import ModelShape

CLASSIFICATION: Final = "text-classification"
TOKENS: Final = "token-classification"
CHOICE: Final = "multiple-choice"
CAUSAL: Final = "causal-lm"
SEQUENCES: Final = "seq2seq"

AUTO_CLASSES: Final[Mapping[str, Any]] = {
    CLASSIFICATION: AutoModelForSequenceClassification,
    TOKENS: AutoModelForTokenClassification,
    CHOICE: AutoModelForMultipleChoice,
    CAUSAL: AutoModelForCausalLM,
    SEQUENCES: AutoModelForSeq2SeqLM,
}
KINDS: Final = tuple(AUTO_CLASSES)
LANGUAGE: Final = (CAUSAL, SEQUENCES)
"""Kinds that predict tokens with the model's own vocabulary projection; the others put a new head on."""


def check_kind(kind: str, shape: ModelShape, *, place: str) -> None:
    """Raise ModelError when a model of `shape` cannot be asked for `kind`."""
    if shape.decoder_layers and kind != SEQUENCES:
        raise ModelError(
            f"{place}: a {shape.family} model has an encoder and a decoder, {kind} needs one of them alone",
            hint=f"use the task kind {SEQUENCES}, or another model",
        )
    if kind == SEQUENCES and not shape.decoder_layers:
        raise ModelError(
            f"{place}: a {shape.family} model has no encoder beside a decoder, which {SEQUENCES} needs",
            hint=f"use a model such as t5-small or a BART, or the task kind {CAUSAL} with two text columns",
        )
    if kind == CAUSAL and not shape.causal:
        raise ModelError(
            f"{place}: a {shape.family} model is an encoder, causal-lm needs a decoder",
            hint="use a model such as gpt2, a Llama or a Qwen, or the task kind text-classification",
        )
