"""A LoRA trained with Hugging Face `Trainer` and `peft`, as their guides to text classification write it.

Kinder than the guides where they would cost time that is not training: rows are tokenised once for all trials and kept
in a list, nothing is saved or reported, no progress bar is drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from autopeft.trainers.rows import Splits


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both sides train."""

    model: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    """Last words of the sites' names."""
    learning_rate: float
    warmup_ratio: float
    epochs: int
    batch_size: int
    max_length: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Both splits as the Trainer takes them."""

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    n_labels: int
    tokenizer: PreTrainedTokenizerBase


def tokenized(splits: Splits, recipe: Recipe, *, padded: bool) -> Rows:
    """Rows as tokens; `padded` to the full length, as the fine-tuning tutorials have it, or each as long as it is."""
    tokenizer = AutoTokenizer.from_pretrained(recipe.model)

    def encode(texts: Sequence[tuple[str, ...]], labels: Sequence[str]) -> list[dict[str, Any]]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        padding = "max_length" if padded else False
        encoded = tokenizer(*columns, truncation=True, max_length=recipe.max_length, padding=padding)
        classes = [splits.classes.index(label) for label in labels]
        return [
            {name: values[row] for name, values in encoded.items()} | {"label": label}
            for row, label in enumerate(classes)
        ]

    return Rows(
        train=encode(splits.train.texts, splits.train.labels),
        validation=encode(splits.validation.texts, splits.validation.labels),
        n_labels=len(splits.classes),
        tokenizer=tokenizer,
    )


def train(
    recipe: Recipe,
    rows: Rows,
    *,
    seed: int,
    folder: str,
    grouped: bool,
    bf16: bool,
    told: Callable[[float], None] | None = None,
) -> float:
    """Accuracy on the validation rows after the last epoch; `told` hears that of every epoch."""
    set_seed(seed)
    model = adapted_model(recipe, rows)
    steps = recipe.epochs * math.ceil(len(rows.train) / recipe.batch_size)
    arguments = TrainingArguments(
        output_dir=folder,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        warmup_steps=math.ceil(recipe.warmup_ratio * steps),
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        bf16=bf16,
        use_cpu=recipe.device == "cpu",
        **(_grouping() if grouped else {}),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows.train,  # type: ignore[arg-type]  # a list has all that is asked of a dataset
        eval_dataset=rows.validation,  # type: ignore[arg-type]
        processing_class=rows.tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer=rows.tokenizer),
        compute_metrics=_accuracy,
    )
    trainer.remove_callback(PrinterCallback)
    if told is not None:
        trainer.add_callback(_Telling(told))
    trainer.train()
    return float([row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row][-1])


class _Telling(TrainerCallback):
    """Hands on the accuracy of every evaluation."""

    def __init__(self, told: Callable[[float], None]) -> None:
        self._told = told

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._told(float(kwargs["metrics"]["eval_accuracy"]))


def adapted_model(recipe: Recipe, rows: Rows) -> PeftModel:
    """The base model from its folder, with a new head and LoRA."""
    model = AutoModelForSequenceClassification.from_pretrained(recipe.model, num_labels=rows.n_labels)
    model.config.pad_token_id = rows.tokenizer.pad_token_id
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=recipe.rank,
        lora_alpha=int(recipe.alpha),
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.targets),
    )
    return get_peft_model(model, lora)


def _grouping() -> dict[str, Any]:
    """Batches of rows of like length, by the name that this release has for it."""
    new = "train_sampling_strategy" in {field.name for field in fields(TrainingArguments)}
    return {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}


def _accuracy(predicted: Any) -> dict[str, float]:
    logits, labels = predicted
    return {"accuracy": float((np.argmax(logits, axis=1) == labels).mean())}
