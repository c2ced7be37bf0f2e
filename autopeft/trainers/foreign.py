"""The memory of training an adapter of Hugging Face PEFT with PEFT itself: its own model, traced in a whole step."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any, Final, final

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
from autopeft.trainers.meter import distinct_tensors, held_bytes
from autopeft.trainers.pixels import ImageBatch
from autopeft.trainers.shallow import DEPTHS, deepened, has_equal_layers, treats_layers_alike
from autopeft.trainers.step import Step
from autopeft.trainers.storages import storage_bytes
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
    """`PeftForecast`'s answer to one question.

    Raises:
        ConfigurationError: PEFT refuses the configuration on this model.
        ModelError: The model cannot be described.
    """
    return PeftForecast(config, spec, kind=kind, n_labels=n_labels, device=device).predict(setup, context=context)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wrapped:
    """PEFT's model around a described one."""

    described: DescribedModel
    model: nn.Module
    base_bytes: int

    @property
    def gradients(self) -> int:
        """Bytes of all gradients."""
        return sum(storage_bytes(tensor) for tensor in distinct_tensors([self.model]) if tensor.requires_grad)


@final
class PeftForecast:
    """The peak of training the adapter that `config` describes, as PEFT builds and Transformers trains it.

    The model's own loss is used, with the logits of every token, and the model is in training mode; AdamW's states are
    in the dtype of what they belong to. A chain of equal layers, equally adapted, is traced with few of them
    (`autopeft.trainers.shallow`); not under checkpointing, where backward passes keep things of their own.

    Args:
        config: What an `adapter_config.json` holds.
        spec: The base model, in the dtype and attention of training.
        kind: A task kind.
        n_labels: Outputs of the new head; None for language models.
        device: `cpu` or `cuda`.

    Raises:
        ModelError: The model cannot be described.
    """

    def __init__(
        self, config: Mapping[str, object], spec: ModelSpec, *, kind: str, n_labels: int | None, device: str
    ) -> None:
        self._config = config
        self._kind = kind
        self._device = device
        self._describe = partial(describe_model, spec, kind=kind, n_labels=n_labels)
        self._whole = self._describe()
        self._shallow = treats_layers_alike(config) and has_equal_layers(self._whole)
        self._wrapped: dict[int, _Wrapped] = {}

    def predict(self, setup: Setup, *, context: int = 0) -> MemoryBreakdown:
        """The peak, with `context` for the device's driver.

        Raises:
            ConfigurationError: PEFT refuses the configuration on this model.
        """
        n_layers = self._whole.shape.n_layers
        if self._shallow and not setup.checkpointing:
            peaks = [self._traced(depth, setup, context=context) for depth in DEPTHS]
            gradients = [self._wrapped[depth].gradients for depth in DEPTHS]
            found = deepened(peaks, gradients=gradients, n_layers=n_layers, cuda=self._device == "cuda")
            if found is not None:
                return found
        return self._traced(n_layers, setup, context=context)

    def _traced(self, depth: int, setup: Setup, *, context: int) -> MemoryBreakdown:
        """The peak of the model with `depth` layers, in a whole step."""
        wrapped = self._at(depth)
        task, described = TASKS[self._kind][0], wrapped.described
        image = described.shape.image
        batch = example_batch(task, rows=setup.rows, sequences=setup.sequences, length=setup.length, image=image)
        step = Step(described=described, task=task, batch=batch, device=self._device, checkpointing=setup.checkpointing)

        def loss() -> torch.Tensor:
            wrapped.model.train()
            return wrapped.model(**_given(batch, described), labels=torch.from_numpy(batch.targets)).loss

        modules, base_bytes = [wrapped.model], wrapped.base_bytes
        try:
            with _silent():
                return trace_step(
                    step, loss, modules=modules, base_bytes=base_bytes, float_states=False, context=context
                )
        except (*UNANSWERABLE, TypeError, AttributeError, AssertionError) as error:
            raise _refused(self._config, error) from error

    def _at(self, depth: int) -> _Wrapped:
        if depth not in self._wrapped:
            whole = depth == self._whole.shape.n_layers
            described = self._whole if whole else self._describe(depth=depth)
            base_bytes = held_bytes([described.model])
            model = _wrapped(described, self._config, kind=self._kind)
            self._wrapped[depth] = _Wrapped(described=described, model=model, base_bytes=base_bytes)
        return self._wrapped[depth]


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
        with _silent(), faking(described.mode):
            return get_peft_model(described.model, known)
    except AutoPeftError:
        raise
    except (*UNANSWERABLE, TypeError, AttributeError, AssertionError, KeyError) as error:
        raise _refused(config, error) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, PEFT neither warns nor draws progress bars, which go to stderr."""
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


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
