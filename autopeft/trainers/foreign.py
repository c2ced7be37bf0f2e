"""The memory of training an adapter of Hugging Face PEFT with PEFT itself: its own model, traced in a whole step."""

import warnings
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.distributed.tensor  # peft takes it to be loaded
from peft import PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from autopeft.errors import AutoPeftError, ConfigurationError
from autopeft.objectives.memory import MemoryBreakdown, Setup
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.described import DescribedModel, describe_model
from autopeft.trainers.example import example_batch
from autopeft.trainers.fake import UNANSWERABLE, faking
from autopeft.trainers.image_tasks import pixel_values
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.meter import held_bytes
from autopeft.trainers.pixels import ImageBatch
from autopeft.trainers.step import Step
from autopeft.trainers.task import TASKS
from autopeft.trainers.task_kind import inputs
from autopeft.trainers.whole_step import trace_step

_TASK_TYPES: Final[Mapping[str, str | None]] = {
    "causal-lm": "CAUSAL_LM",
    "image-classification": None,
    "multiple-choice": "SEQ_CLS",
    "seq2seq": "SEQ_2_SEQ_LM",
    "text-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}


def forecast_peft(
    config: Mapping[str, object],
    spec: ModelSpec,
    setup: Setup,
    *,
    kind: str,
    n_labels: int | None,
    device: str,
    context: int = 0,
) -> MemoryBreakdown:
    """The peak of training the adapter that `config` describes, as PEFT builds and Transformers trains it.

    The model's own loss is used, with the logits of every token, and the model is in training mode; AdamW's states are
    in the dtype of what they belong to.

    Args:
        config: What an `adapter_config.json` holds.
        spec: The base model, in the dtype and attention of training.
        setup: Batch, length, checkpointing.
        kind: A task kind.
        n_labels: Outputs of the new head; None for language models.
        device: `cpu` or `cuda`.
        context: Of the device's driver.

    Raises:
        ConfigurationError: PEFT refuses the configuration on this model.
        ModelError: The model cannot be described.
    """
    described = describe_model(spec, kind=kind, n_labels=n_labels)
    base_bytes = held_bytes([described.model])
    model = _wrapped(described, config, kind=kind)
    task = TASKS[kind][0]
    image = described.shape.image
    batch = example_batch(task, rows=setup.rows, sequences=setup.sequences, length=setup.length, image=image)
    step = Step(described=described, task=task, batch=batch, device=device, checkpointing=setup.checkpointing)

    def loss() -> torch.Tensor:
        model.train()
        return model(**_given(batch, described), labels=torch.from_numpy(batch.targets)).loss

    try:
        return trace_step(step, loss, modules=[model], base_bytes=base_bytes, float_states=False, context=context)
    except (*UNANSWERABLE, TypeError, AttributeError, AssertionError) as error:
        raise _refused(config, error) from error


def _given(batch: AnyBatch, described: DescribedModel) -> dict[str, torch.Tensor]:
    """What the model is called with."""
    device = torch.device("cpu")
    if isinstance(batch, ImageBatch):
        return {"pixel_values": pixel_values(batch, device).to(described.model.dtype)}
    return inputs(batch, device)


def _wrapped(described: DescribedModel, config: Mapping[str, object], *, kind: str) -> nn.Module:
    """PEFT's model around the described one; tensors that need values to be made are made with them."""
    known = _config(config, kind=kind)
    try:
        with warnings.catch_warnings(), faking(described.mode):
            warnings.simplefilter("ignore")
            return get_peft_model(described.model, known)
    except AutoPeftError:
        raise
    except (*UNANSWERABLE, TypeError, AttributeError, AssertionError, KeyError) as error:
        raise _refused(config, error) from error


def _config(config: Mapping[str, object], *, kind: str) -> PeftConfig:
    made = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(str(config["peft_type"]))]
    fields: dict[str, Any] = {name: value for name, value in config.items() if name in made.__dataclass_fields__}
    fields |= {"inference_mode": False, "task_type": config.get("task_type") or _TASK_TYPES[kind]}
    return made(**fields)


def _refused(config: Mapping[str, object], error: Exception) -> ConfigurationError:
    first = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return ConfigurationError(
        f"peft_type {config['peft_type']}: its memory cannot be told: {first}",
        hint="check the targets and fields against the model; its parameters are counted all the same",
    )
