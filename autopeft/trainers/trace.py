"""What a training step takes, told by running it on tensors without values.

The code that runs is the one that trains: the model, the adapters with their hooks, the task's outputs and loss, and
PyTorch's backward pass. Two things are followed: which storages are saved for the backward pass, frozen weights left
out, each storage once (what `autopeft.trainers.meter` measures on a CPU); and which storages are alive (what an
allocator sees).

A step can be run whole, or one layer at a time, from the arguments that each layer is called with in a whole step.
"""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast, final

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from autopeft.objectives.memory import FrameTrace, LayerTrace
from autopeft.trainers.calls import Call
from autopeft.trainers.fake import UNANSWERABLE
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.meter import SavedTensorMeter, buffer_bytes
from autopeft.trainers.model import set_training
from autopeft.trainers.step import Step
from autopeft.trainers.storages import StorageWatch, storage_bytes, storage_key

_CALL: Final = "_call_impl"


@final
class _Source(torch.autograd.Function):
    """A new tensor that a gradient must flow back to, and that nothing but its users holds."""

    @staticmethod
    def forward(ctx: Any, trigger: torch.Tensor, size: torch.Size, dtype: torch.dtype) -> torch.Tensor:  # type: ignore[override]  # torch's own signature is untyped
        del ctx
        return torch.empty(size, dtype=dtype, device=trigger.device)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        del ctx
        return grads[0].new_empty(0), None, None


@final
class _End(torch.autograd.Function):
    """What a pass over a tensor comes to: nothing, whose gradient makes a new one of the tensor's full size."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # torch's own signature is untyped
        ctx.size, ctx.dtype = tensor.shape, tensor.dtype
        return tensor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.empty(ctx.size, dtype=ctx.dtype, device=grads[0].device)


def source(size: torch.Size, dtype: torch.dtype, *, grad: bool) -> torch.Tensor:
    """A tensor as a layer's input or output."""
    if not grad:
        return torch.empty(size, dtype=dtype)
    return cast("torch.Tensor", _Source.apply(torch.empty(0, requires_grad=True), size, dtype))


def trace_layer(
    step: Step, call: Call, adapters: AdapterSet, *, flags: Sequence[bool], penalty: bool = True
) -> LayerTrace:
    """What one call of a layer takes with `adapters`, which are attached.

    Args:
        step: Around the call.
        call: As recorded without adapters.
        adapters: Those of this layer.
        flags: For each of the call's flowing leaves, whether a gradient must flow back to it.
        penalty: The adapters' own terms of the loss count here; not where the layer is called again.
    """
    record = SavedTensorMeter([step.described.model, adapters])
    second = SavedTensorMeter([step.described.model, adapters])
    given = {storage_key(leaf): leaf for leaf in call.leaves if isinstance(leaf, torch.Tensor)}
    watch = StorageWatch({*step.permanent(adapters), *given})
    with step.running(watched=second.around):
        adapters.train()
        with nullcontext() if step.device == "cpu" else watch, record:
            return _LayerRun(step, call, adapters, record, second, watch, penalty).run(step.layers[call.layer], flags)


@final
@dataclass(slots=True)
class _LayerRun:
    """The parts of `trace_layer`."""

    step: Step
    call: Call
    adapters: AdapterSet
    record: SavedTensorMeter
    second: SavedTensorMeter
    watch: StorageWatch
    penalty: bool
    inputs: set[int] = field(default_factory=set)
    before_penalty: set[int] = field(default_factory=set)
    """What was saved before the adapters' own terms of the loss."""

    def run(self, layer: nn.Module, flags: Sequence[bool]) -> LayerTrace:
        ends, outputs = self._forward(layer, flags)
        forward_peak = self.watch.peak
        kept = self.watch.now - sum(life.n_bytes for key, life in self.watch.lives.items() if key in outputs)
        saved = self.record.saved() if ends else {}
        self.watch.restart()
        given = {storage_key(leaf) for leaf in self.call.leaves if isinstance(leaf, torch.Tensor)}
        self.second.ignore((given | self.inputs) & set(saved))
        if ends and (self.step.device != "cpu" or self.step.checkpointing):
            _backward(*ends)
        trained = [parameter for parameter in self.adapters.parameters() if parameter.requires_grad]
        around = given | outputs | self.inputs
        inner = {key: n for key, n in saved.items() if key not in around}
        penalty = sum(n for key, n in inner.items() if key not in self.before_penalty)
        return LayerTrace(
            saved=sum(inner.values()) - penalty,
            penalty=penalty,
            saved_input=sum(saved.get(key, 0) for key in self.inputs),
            saved_output=sum(saved.get(key, 0) for key in outputs if key not in self.inputs),
            shared=tuple((key, n) for key, n in saved.items() if key in given),
            recomputed=self.second.peak_bytes,
            kept=kept,
            forward_peak=forward_peak,
            backward_peak=self.watch.peak,
            gradients=sum(storage_bytes(parameter) for parameter in trained),
            tensors=len(trained),
            frozen=buffer_bytes([self.adapters]),
            frozen_once=0,
            output_grad=bool(ends),
        )

    def _forward(self, layer: nn.Module, flags: Sequence[bool]) -> tuple[list[torch.Tensor], set[int]]:
        """What depends on the layer's output and takes nothing itself, and the storages of that output."""
        args, kwargs = self._arguments(flags)
        output = layer(*args, **kwargs)
        del args, kwargs
        made = tree_leaves(output)
        hidden = [made[at] for at in self.call.outputs]
        keys = {storage_key(tensor) for tensor in hidden}
        ends = [cast("torch.Tensor", _End.apply(tensor)) for tensor in hidden if tensor.requires_grad]
        self.before_penalty = set(self.record.saved())
        penalty = self.adapters.penalty() if self.penalty else None
        if penalty is not None:
            ends.append(penalty)
        return ends, keys

    def _arguments(self, flags: Sequence[bool]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with the input made anew; others that flow keep their storage."""
        leaves = self.call.leaves
        first = self.call.flowing[0] if self.call.flowing else -1
        for at, flag in zip(self.call.flowing, flags, strict=True):
            if at == first:
                leaves[at] = source(leaves[at].shape, leaves[at].dtype, grad=flag)
                self.inputs.add(storage_key(leaves[at]))
            elif flag:
                leaves[at] = leaves[at].detach().requires_grad_(True)
        rebuilt = iter(leaves)
        return cast(
            "tuple[tuple[Any, ...], dict[str, Any]]",
            tree_map(lambda _: next(rebuilt), (self.call.args, self.call.kwargs)),
        )


def _backward(*ends: torch.Tensor) -> None:
    """The backward pass of `ends`, as far as it goes: sparse gradients have no shape where there are no values."""
    with suppress(*UNANSWERABLE):
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])


def trace_frame(step: Step, calls: Sequence[Call], *, grads: Sequence[bool]) -> FrameTrace:
    """What a step takes outside its layers: each is replaced by its recorded output.

    Args:
        step: Around the layers.
        calls: As recorded.
        grads: For each call, whether a gradient must flow back to its output.
    """
    permanent = step.permanent()
    record = SavedTensorMeter([step.described.model])
    known = {storage_key(leaf) for call in calls for leaf in tree_leaves(call.output) if isinstance(leaf, torch.Tensor)}
    stand_in = _StandIn(calls, grads)
    watch = StorageWatch(permanent | known)
    layers = step.layers
    try:
        for layer in layers:
            layer.__dict__[_CALL] = stand_in
        with step.running(), nullcontext() if step.device == "cpu" else watch, record:
            stand_in.watch = watch
            loss = step.loss()
            saved = sum(record.saved().values())
            trained = loss.requires_grad
            if trained and step.device != "cpu":
                _backward(loss)
        for parameter in step.described.model.parameters():
            parameter.grad = None
    finally:
        for layer in layers:
            layer.__dict__.pop(_CALL, None)
    return FrameTrace(
        saved=saved if trained else 0,
        before=stand_in.before,
        peak=watch.peak,
        after=stand_in.after,
    )


def trace_scoring(step: Step) -> int:
    """The most alive while a batch is scored without adapters, the weights left out."""
    watch = StorageWatch(step.permanent())
    with step.running(), watch, torch.no_grad():
        set_training(step.described, training=False)
        step.task.statistics(*step.task.outputs(step.described.model, step.batch, torch.device("cpu")))
    return watch.peak


@final
class _StandIn:
    """Called in place of every layer, in turn."""

    def __init__(self, calls: Sequence[Call], grads: Sequence[bool]) -> None:
        self._rest = iter(zip(calls, grads, strict=True))
        self.watch = StorageWatch()
        self.before = 0
        self.after = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call, grad = next(self._rest)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        inputs = sum(self.watch.lives[key].n_bytes for key in map(storage_key, given[:1]) if key in self.watch.lives)
        # The first call's input is the embeddings' output, which some models hold until the last layer.
        self.before = max(self.before, self.watch.now - inputs)
        if not grad:
            return call.output
        leaves = tree_leaves(call.output)
        for at in call.outputs:
            leaves[at] = source(leaves[at].shape, leaves[at].dtype, grad=True)
            leaves[at].register_hook(self._arrived)
        rebuilt = iter(leaves)
        return tree_map(lambda _: next(rebuilt), call.output)

    def _arrived(self, _: torch.Tensor) -> None:
        self.after = self.watch.now
