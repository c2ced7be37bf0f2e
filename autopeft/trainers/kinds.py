"""The kinds of task by name, and the class of transformers that each is learned with."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import ModelShape

CLASSIFICATION: Final = "text-classification"
TOKENS: Final = "token-classification"
CHOICE: Final = "multiple-choice"
CAUSAL: Final = "causal-lm"
SEQUENCES: Final = "seq2seq"
IMAGES: Final = "image-classification"

AUTO_CLASSES: Final[Mapping[str, Any]] = {
    CLASSIFICATION: AutoModelForSequenceClassification,
    TOKENS: AutoModelForTokenClassification,
    CHOICE: AutoModelForMultipleChoice,
    CAUSAL: AutoModelForCausalLM,
    SEQUENCES: AutoModelForSeq2SeqLM,
    IMAGES: AutoModelForImageClassification,
}
KINDS: Final = tuple(AUTO_CLASSES)
_CLASSES: Final[Mapping[str, Collection[str]]] = {
    CLASSIFICATION: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    TOKENS: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    CHOICE: MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    CAUSAL: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    SEQUENCES: MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    IMAGES: MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
"""Families (`model_type`) that transformers has a class for."""
_FAMILIAR: Final = ("bert", "roberta", "deberta-v2", "gpt2", "llama", "t5", "bart", "vit", "dinov2")
LANGUAGE: Final = (CAUSAL, SEQUENCES)
"""Kinds that predict tokens with the model's own vocabulary projection; the others put a new head on."""


def check_kind(kind: str, shape: ModelShape, *, place: str, custom_code: bool = False) -> None:
    """Raise ModelError when a model of `shape` cannot be asked for `kind`.

    Args:
        kind: A key of `AUTO_CLASSES`.
        shape: The model.
        place: Put before the message.
        custom_code: The model may bring classes of its own.
    """
    refused = _reads_otherwise(kind, shape) or _built_otherwise(kind, shape)
    if refused is None and not custom_code and shape.family in CONFIG_MAPPING_NAMES:
        refused = None if shape.family in _CLASSES[kind] else _no_class(kind, shape)
    if refused is not None:
        message, hint = refused
        raise ModelError(f"{place}: {message}", hint=hint)


def _reads_otherwise(kind: str, shape: ModelShape) -> tuple[str, str] | None:
    """(message, hint) when the model reads images and the task texts, or the other way round."""
    if kind == IMAGES and shape.image is None:
        return (
            f"a {shape.family} model is no vision transformer, which {IMAGES} needs",
            "use a ViT, DeiT, BEiT or DINOv2, such as google/vit-base-patch16-224-in21k",
        )
    if kind != IMAGES and shape.image is not None:
        return (
            f"a {shape.family} model reads images, {kind} needs a model of text",
            f"use the task kind {IMAGES}, or another model",
        )
    return None


def _built_otherwise(kind: str, shape: ModelShape) -> tuple[str, str] | None:
    """(message, hint) when the model lacks an encoder or a decoder that the task needs."""
    if shape.decoder_layers and kind != SEQUENCES:
        return (
            f"a {shape.family} model has an encoder and a decoder, {kind} needs one of them alone",
            f"use the task kind {SEQUENCES}, or another model",
        )
    if kind == SEQUENCES and not shape.decoder_layers:
        return (
            f"a {shape.family} model has no encoder beside a decoder, which {SEQUENCES} needs",
            f"use a model such as t5-small or a BART, or the task kind {CAUSAL} with two text columns",
        )
    if kind == CAUSAL and not shape.causal:
        return (
            f"a {shape.family} model is an encoder, causal-lm needs a decoder",
            "use a model such as gpt2, a Llama or a Qwen, or the task kind text-classification",
        )
    return None


def _no_class(kind: str, shape: ModelShape) -> tuple[str, str]:
    near = [family for family in _FAMILIAR if family in _CLASSES[kind]]
    return (
        f"transformers has no {shape.family} model for {kind}",
        f"use another model; {', '.join(near)} have one",
    )
