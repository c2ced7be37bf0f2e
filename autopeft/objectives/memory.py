"""Peak training memory added up from what was traced: no torch, no model, numbers only.

A step runs through a chain of layers. What each keeps for its backward pass, and the most it holds while it runs, are
facts of that layer alone; the peak of the step follows from them (`autopeft.trainers.forecast` has the tracing).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from autopeft.spaces.configuration import Configuration

FLOAT32 = 4
ADAMW_STATES = 2
"""Float32 numbers that AdamW keeps for every trained parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBreakdown:
    """Bytes by purpose at the peak; `total` is the peak."""

    weights: int
    """Base model and task head, parameters and buffers."""
    adapters: int
    """Float32 masters of the adapters' parameters, and what they keep frozen."""
    gradients: int
    optimizer: int
    activations: int
    """Kept for the backward pass by the layers."""
    logits: int
    """Kept for the backward pass by everything else: embeddings, head and loss."""
    workspace: int
    """Temporary results; 0 in the definition that a CPU is measured by."""
    context: int = 0
    """What the device's driver takes before anything is allocated; never in a measured peak."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def measurable(self) -> int:
        """The part of `total` that a measurement of the peak contains."""
        return self.total - self.context

    def packed(self, trials: int) -> "MemoryBreakdown":
        """Of so many such trials that train at once on one base: weights and context once, all else for each.

        An upper bound: their passes need not all be in flight at once. Further copies of the task head are left out.
        """
        own = {part: trials * n_bytes for part, n_bytes in asdict(self).items()}
        return MemoryBreakdown(**own | {"weights": self.weights, "context": self.context})

    def to_json(self) -> dict[str, int]:
        return {"total": self.total} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a configuration is trained, as far as memory goes; a configuration's own entries go before these."""

    batch_size: int
    length: int
    """Tokens of the longest row."""
    sequences: int = 1
    """Sequences that one row of the data becomes, such as the choices of a question."""
    optimizer: str = "adamw"
    """With `lora_fa` the first factors have neither gradient nor state and their inputs are not kept; `galore` is taken
    for `adamw`, which is what it is for tensors with a side of at most its rank and more than it needs for others."""
    checkpointing: bool = False
    accumulation: int = 1
    evaluation_batch_size: int | None = None
    """Rows scored at once; None leaves scoring out of the peak."""

    def of(self, configuration: Configuration) -> "Setup":
        """With the entries of `configuration` in their place."""
        own = dict(configuration.training)
        return replace(
            self,
            batch_size=int(own.get("batch_size", self.batch_size)),
            optimizer=str(own.get("optimizer", self.optimizer)),
            checkpointing=bool(own.get("checkpointing", self.checkpointing)),
            accumulation=int(own.get("accumulation", self.accumulation)),
        )

    @property
    def rows(self) -> int:
        """Sequences in the largest batch that the model sees at once."""
        return self.sequences * -(-self.batch_size // self.accumulation)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTrace:
    """What one call of one layer takes, in bytes; of its output only what it keeps itself counts here."""

    saved: int
    """Kept for the backward pass, made in the layer."""
    penalty: int
    """Kept by the adapters' own terms of the loss, which the backward pass is done with before it gets to layers."""
    saved_input: int
    """The input's storage, where it is kept; 0 where it is not."""
    saved_output: int
    """The output's storage, where the layer itself keeps it."""
    shared: tuple[tuple[int, int], ...]
    """(identity, bytes) of what is kept of tensors that all layers are given: masks, positions."""
    recomputed: int
    """The most that a second forward pass of the layer keeps besides, under activation checkpointing."""
    kept: int
    """Alive after the forward pass, the input among it."""
    forward_peak: int
    """The most alive during the forward pass, above what was alive before the input was made."""
    backward_peak: int
    """The same of the backward pass, the incoming gradient among it."""
    gradients: int
    """Of the layer's own trained parameters."""
    tensors: int
    """How many trained tensors there are."""
    frozen: int
    """Frozen tensors of the layer's adapters that no other layer's share."""
    frozen_once: int
    """Those that all layers share."""
    output_grad: bool
    """A gradient must flow back to the layer's output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTrace:
    """What a step takes outside the layers: embeddings, masks, head, loss."""

    saved: int
    before: int
    """Alive when the first layer begins."""
    peak: int
    """The most alive, were there no layers."""
    after: int
    """Alive when the gradient arrives at the last layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Bytes that are there all the time."""

    weights: int
    adapters: int
    gradients: int
    """Of all trained parameters, once the backward pass is over."""
    optimizer: int

    @property
    def without_gradients(self) -> int:
        return self.weights + self.adapters + self.optimizer


def saved_peak(resident: Resident, frame: FrameTrace, layers: Sequence[LayerTrace]) -> MemoryBreakdown:
    """The peak as a CPU measures it: everything resident, and the most saved for the backward pass at one time."""
    shared = sum(dict(row for layer in layers for row in layer.shared).values())
    sums: list[int] = [shared]
    before = 0
    for layer in layers:
        sums.append(sums[-1] + layer.saved + max(layer.saved_input - before, 0) + layer.saved_output)
        before = layer.saved_output
    activations, logits = sums[-1] + sum(layer.penalty for layer in layers), frame.saved
    for reached, layer in zip(sums[1:], layers, strict=True):
        if layer.recomputed and reached + layer.recomputed > activations + logits:
            activations, logits = reached + layer.recomputed, 0
    return MemoryBreakdown(
        weights=resident.weights,
        adapters=resident.adapters,
        gradients=resident.gradients,
        optimizer=resident.optimizer,
        activations=activations,
        logits=logits,
        workspace=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """A time at which the peak may be."""

    alive: int
    """Bytes besides what is resident."""
    gradients: int
    activations: int
    logits: int


def live_peak(
    resident: Resident, frame: FrameTrace, layers: Sequence[LayerTrace], *, evaluation: int = 0, context: int = 0
) -> MemoryBreakdown:
    """The peak as an allocator sees it: everything alive at one time, whoever holds it.

    Args:
        resident: What is there all the time.
        frame: Outside the layers.
        layers: In the order in which they are called.
        evaluation: The most alive while scoring, besides what is resident.
        context: Of the driver.
    """
    moments = [
        *_moments(frame, layers),
        _Moment(alive=resident.gradients, gradients=resident.gradients, activations=0, logits=0),
    ]
    moments.append(_Moment(alive=evaluation, gradients=0, activations=0, logits=0))
    top = max(moments, key=lambda moment: moment.alive)
    return MemoryBreakdown(
        weights=resident.weights,
        adapters=resident.adapters,
        gradients=top.gradients,
        optimizer=resident.optimizer,
        activations=top.activations,
        logits=top.logits,
        workspace=top.alive - top.gradients - top.activations - top.logits,
        context=context,
    )


def _moments(frame: FrameTrace, layers: Sequence[LayerTrace]) -> list[_Moment]:
    """Forward through the layers, the head and the loss there and back, backward through the layers."""
    kept, gradients = 0, 0
    moments: list[_Moment] = []
    for layer in layers:
        alive = frame.before + kept + layer.forward_peak
        moments.append(_Moment(alive=alive, gradients=0, activations=kept, logits=0))
        kept += layer.kept
    logits = min(frame.saved, frame.peak)
    moments.append(_Moment(alive=kept + frame.peak, gradients=0, activations=kept, logits=logits))
    for layer in reversed(layers):
        kept -= layer.kept
        alive = frame.after + kept + layer.backward_peak + gradients
        moments.append(_Moment(alive=alive, gradients=gradients, activations=kept + layer.kept, logits=0))
        gradients += layer.gradients
    return moments
