"""Predicted peak training memory, in closed form from the model's shape: no weights, no torch."""

from dataclasses import asdict, dataclass

from autopeft.objectives.activations import FLOAT32, head_bytes, saved_bytes
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.factors import first_factor_parameters
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.virtual_tokens import virtual_tokens

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAMW_STATES = 2
"""Float32 numbers that AdamW keeps for every trained parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBreakdown:
    """Bytes by purpose; `total` is the peak that training is predicted to reach."""

    weights: int
    """Frozen base and task head."""
    adapters: int
    """Float32 masters of the adapters' parameters."""
    gradients: int
    optimizer: int
    activations: int
    """Kept for the backward pass, the head's part and the logits among it."""
    workspace: int
    """Temporary results at the peak; 0 in the definition that a CPU is measured by."""

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations + self.workspace

    def to_json(self) -> dict[str, int]:
        return {"total": self.total} | asdict(self)


def predict_memory(
    shape: ModelShape,
    configuration: Configuration,
    *,
    batch_size: int,
    length: int,
    n_labels: int | None,
    precision_bytes: int | None = None,
    head_parameters: int | None = None,
    tied_head: bool = True,
    workspace: bool = False,
    optimizer: str = "adamw",
    sequences: int = 1,
) -> MemoryBreakdown:
    """Peak memory of training `configuration` on the largest batch, as `autopeft.trainers.meter` measures it on a CPU.

    Args:
        shape: The base model, in the dtype and with the attention it is trained with.
        configuration: One that is valid for `shape`; its own `batch_size` entry goes before the argument.
        batch_size: Rows of the batch.
        length: Tokens of the longest row of the training data.
        n_labels: Outputs of the task head, 1 for regression; None for language modelling, where every token of the
            batch is taken for a target.
        precision_bytes: Bytes of one weight and activation; None takes the shape's dtype.
        head_parameters: Trained parameters of the head; None takes one linear map.
        tied_head: The language-model head shares the embedding's weights.
        workspace: Add an estimate of temporary results, for a device whose allocator counts them.
        optimizer: A value of the training setting; the configuration's own goes before it. With `lora_fa` the first
            factors have neither gradient nor state and their inputs are not kept; `galore` is taken for `adamw`,
            which is what it is for tensors with a side of at most its rank and more than it needs for others.
        sequences: Sequences that one row of the data becomes, such as the choices of a question.
    """
    each = DTYPE_BYTES[shape.dtype] if precision_bytes is None else precision_bytes
    rows = sequences * int(dict(configuration.training).get("batch_size", batch_size))
    length += virtual_tokens(configuration)
    n_tokens = rows * length
    adapters = count_parameters(configuration, shape).total
    if head_parameters is None:
        head_parameters = n_labels * (shape.hidden_size + 1) if n_labels is not None else 0
    vocabulary = 0 if n_labels is not None or tied_head else shape.vocabulary_size * shape.hidden_size
    frozen_a = dict(configuration.training).get("optimizer", optimizer) == "lora_fa"
    trained = adapters + head_parameters - (first_factor_parameters(configuration, shape) if frozen_a else 0)
    activations = saved_bytes(shape, configuration, batch_size=rows, length=length, bytes_each=each, frozen_a=frozen_a)
    if trained:
        activations += head_bytes(shape, batch_size=rows, length=length, n_labels=n_labels, bytes_each=each)
    return MemoryBreakdown(
        weights=each * (shape.base_parameters + vocabulary) + FLOAT32 * head_parameters,
        adapters=FLOAT32 * adapters,
        gradients=FLOAT32 * trained,
        optimizer=ADAMW_STATES * FLOAT32 * trained,
        activations=activations,
        workspace=_workspace(shape, n_tokens, n_labels=n_labels, each=each) if workspace else 0,
    )


def _workspace(shape: ModelShape, n_tokens: int, *, n_labels: int | None, each: int) -> int:
    """Largest temporary results of the backward pass: gradients at the widest place of a layer, or of the logits."""
    widest = max(max(site.d_in, site.d_out) for sites in shape.layers for site in sites)
    layer = n_tokens * each * 2 * widest
    logits = 2 * FLOAT32 * n_tokens * shape.vocabulary_size if n_labels is None else 0
    return max(layer, logits)
