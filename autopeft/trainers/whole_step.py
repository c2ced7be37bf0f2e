"""A whole training step on tensors without values: for what does not act layer by layer, and to check what does."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import final

import torch
from torch import nn

from autopeft.objectives.memory import ADAMW_STATES, FLOAT32, MemoryBreakdown
from autopeft.trainers.fake import UNANSWERABLE
from autopeft.trainers.meter import SavedTensorMeter, distinct_tensors, held_bytes
from autopeft.trainers.step import Step
from autopeft.trainers.storages import Life, StorageWatch, storage_bytes, storage_key


@final
class _Places:
    """Notes what each part of a step saves for the backward pass: its layers, and all else."""

    def __init__(self, permanent: set[int], watch: StorageWatch | None) -> None:
        self.layers: dict[int, int] = {}
        """Bytes by storage."""
        self.rest: dict[int, int] = {}
        self.lives: dict[int, Life] = {}
        self._depth = 0
        self._permanent = permanent
        self._watch = watch

    @contextmanager
    def following(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Inside, what runs in one of `layers` is known to."""

        def enter(*_: object) -> None:
            self._depth += 1

        def leave(*_: object) -> None:
            self._depth -= 1

        with ExitStack() as stack:
            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(enter).remove)
                stack.callback(layer.register_forward_hook(leave).remove)
            yield

    def note(self, tensor: torch.Tensor) -> None:
        """`tensor` is saved."""
        key = storage_key(tensor)
        if key in self._permanent or key in self.layers or key in self.rest:
            return
        (self.layers if self._depth else self.rest)[key] = storage_bytes(tensor)
        if self._watch is not None and key in self._watch.lives:
            self.lives[key] = self._watch.lives[key]


def trace_step(
    step: Step,
    loss: Callable[[], torch.Tensor],
    *,
    modules: Sequence[nn.Module],
    base_bytes: int,
    float_states: bool = True,
    context: int = 0,
) -> MemoryBreakdown:
    """The peak of a step from its loss to the end of its backward pass, on the step's device.

    Args:
        step: The model, and the device whose paths are taken.
        loss: Runs the forward pass.
        modules: Base model, head and adapters.
        base_bytes: Of the base model and the head; the rest of `modules` are adapters.
        float_states: The optimizer's states are float32, whatever the parameters are; else in their dtype.
        context: Of the driver.
    """
    permanent = {storage_key(tensor) for tensor in distinct_tensors(modules)}
    watch = None if step.device == "cpu" else StorageWatch(permanent)
    places = _Places(permanent, watch)
    meter = SavedTensorMeter(modules, noted=places.note)
    trained = [tensor for tensor in distinct_tensors(modules) if tensor.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(step.running(watched=meter.around))
        stack.enter_context(watch or nullcontext())
        stack.enter_context(places.following(step.layers))
        with meter:
            value = loss()
            at_loss = meter.peak_bytes
            if value.requires_grad:
                with suppress(*UNANSWERABLE):
                    value.backward()
    gradients = sum(storage_bytes(tensor) for tensor in trained)
    each = ADAMW_STATES * FLOAT32 if float_states else None
    states = sum(tensor.numel() * (each or ADAMW_STATES * tensor.element_size()) + FLOAT32 for tensor in trained)
    resident = {
        "weights": base_bytes,
        "adapters": held_bytes(modules) - base_bytes,
        "optimizer": states,
        "context": context,
    }
    if watch is None:
        higher = meter.peak_bytes > at_loss
        parts = {
            "activations": meter.peak_bytes if higher else sum(places.layers.values()),
            "logits": 0 if higher else sum(places.rest.values()),
        }
        breakdown = MemoryBreakdown(**resident, **parts, gradients=gradients, workspace=0)
    else:
        grads = [tensor.grad for tensor in trained if tensor.grad is not None]
        breakdown = MemoryBreakdown(**resident, **_at_peak(watch, places, grads, gradients))
    for tensor in trained:
        tensor.grad = None
    return breakdown


def _at_peak(watch: StorageWatch, places: _Places, grads: Sequence[torch.Tensor], gradients: int) -> dict[str, int]:
    """What was alive at the peak, by purpose; all gradients, where they are more than that."""
    if gradients > watch.peak:
        return {"gradients": gradients, "activations": 0, "logits": 0, "workspace": 0}

    def alive(life: Life | None) -> int:
        if life is None or life.born > watch.peak_at or (life.died is not None and life.died < watch.peak_at):
            return 0
        return life.n_bytes

    parts = {
        "gradients": sum(alive(watch.lives.get(storage_key(grad))) for grad in grads),
        "activations": sum(alive(places.lives.get(key)) for key in places.layers),
        "logits": sum(alive(places.lives.get(key)) for key in places.rest),
    }
    return parts | {"workspace": watch.peak - sum(parts.values())}
