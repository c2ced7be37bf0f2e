"""The loss that is trained, and what of the model it is computed from: its outputs, or what its output embedding reads.

A language model's logits are the largest tensors of its step, and its output embedding is frozen. Where kernels take
it, the embedding is left out of the model's pass, and the loss is `linear_cross_entropy` of what it would have read: a
few rows of logits exist at a time. That is the same only where the model hands the embedding's output on as it is, so
it is asked once what it makes of it (some scale it, cap it or add to it).

Letters: N items of several slots, K slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final, final
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.kernels.dispatch import takes
from autopeft.kernels.loss import linear_cross_entropy
from autopeft.kernels.slots import Slots
from autopeft.trainers.adapters.own_forward import OwnForward
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.task_kind import Task

_CALL: Final = "_call_impl"
_LACKS: Final = (AttributeError, IndexError, KeyError, TypeError)
"""What asking for more of a transformer's output than its last hidden states raises; anything else is a fault."""
_HANDS_OUT: Final[WeakKeyDictionary[nn.Module, bool]] = WeakKeyDictionary()

Pair = tuple[torch.Tensor, torch.Tensor]


class AbstractLoss(ABC):
    """What a training step asks of the model, and the losses it makes of the answer."""

    @abstractmethod
    def outputs(self, batch: AnyBatch, device: torch.device) -> Pair:
        """What the loss is computed from, a row an item, and the items' targets."""

    def loss(self, batch: AnyBatch, device: torch.device) -> torch.Tensor:
        """The mean loss of a batch; what it was computed from is let go of."""
        outputs, targets = self.outputs(batch, device)
        return self.losses(outputs, targets, [len(targets)])[0]

    @abstractmethod
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
        """The mean loss of each slot, of which `sizes` says how many items it has, one after the other."""


def training_loss(task: Task, model: PreTrainedModel) -> AbstractLoss:
    """How the loss of `task` is computed on `model`: by the kernels where they take it."""
    head = _kernel_head(model) if task.picked is not None else None
    return OfOutputs(task, model) if head is None else OfHidden(task, model, head)


@final
class OfOutputs(AbstractLoss):
    """The task's loss of the model's outputs."""

    def __init__(self, task: Task, model: PreTrainedModel) -> None:
        self._task, self._model = task, model

    def outputs(self, batch: AnyBatch, device: torch.device) -> Pair:
        return self._task.outputs(self._model, batch, device)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
        rows = zip(outputs.split(list(sizes)), targets.split(list(sizes)), strict=True)
        return [self._task.loss(own, wanted) for own, wanted in rows]


@final
class OfHidden(AbstractLoss):
    """The cross-entropy over the vocabulary, from what the output embedding reads."""

    def __init__(self, task: Task, model: PreTrainedModel, head: nn.Linear) -> None:
        self._task, self._model, self._head = task, model, head

    def outputs(self, batch: AnyBatch, device: torch.device) -> Pair:
        assert self._task.picked is not None
        passing_on = OwnForward(self._head, lambda hidden: hidden)
        try:
            return self._task.picked(self._model, batch, device)
        finally:
            passing_on.remove()

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
        slots = Slots.of(sizes, device=outputs.device)
        return linear_cross_entropy(outputs, self._head.weight, targets, slots, bias_V=self._head.bias).unbind()


def _kernel_head(model: PreTrainedModel) -> nn.Linear | None:
    """The output embedding of `model` where kernels take the loss; None where it is trained or something acts on it."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or not takes(("softmax_cross_entropy",), head.weight):
        return None
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    if trained or head._forward_hooks or head._forward_pre_hooks:
        return None
    if model not in _HANDS_OUT:
        _HANDS_OUT[model] = _hands_out(model, head)
    return head if _HANDS_OUT[model] else None


@torch.no_grad()
def _hands_out(model: PreTrainedModel, head: nn.Linear) -> bool:
    """Whether the logits of `model` are the very tensor that `head` gives; the layers are not run for it."""
    one = torch.ones(1, 1, dtype=torch.long, device=head.weight.device)
    given: list[torch.Tensor] = []

    def projected(hidden: torch.Tensor) -> torch.Tensor:
        given.append(hidden.new_zeros(*hidden.shape[:-1], head.out_features))
        return given[-1]

    asked: dict[str, Any] = {"input_ids": one, "attention_mask": one}
    if model.config.is_encoder_decoder:
        asked["decoder_input_ids"] = one
    hidden = torch.zeros(1, 1, head.in_features, dtype=head.weight.dtype, device=head.weight.device)
    with ExitStack() as stack:
        stack.callback(OwnForward(head, projected).remove)
        for part in _below(model):
            stack.enter_context(_saying(part, hidden))
        try:
            logits = model(**asked).logits
        except _LACKS:
            return False
    return len(given) == 1 and logits is given[0] and logits._version == 0


def _below(model: PreTrainedModel) -> list[nn.Module]:
    """The parts of a language model whose output its embedding reads."""
    if model.base_model is not model:
        return [model.base_model]
    return [part for part in (getattr(model, "encoder", None), getattr(model, "decoder", None)) if part is not None]


@contextmanager
def _saying(part: nn.Module, hidden: torch.Tensor) -> Iterator[None]:
    """Inside, `part` is not run, and has said `hidden`."""
    before = part.__dict__.get(_CALL)
    part.__dict__[_CALL] = partial(_said, hidden)
    try:
        yield
    finally:
        if before is None:
            del part.__dict__[_CALL]
        else:
            part.__dict__[_CALL] = before


def _said(hidden: torch.Tensor, *_: object, **__: object) -> "_Said":
    return _Said(hidden)


@final
class _Said:
    """The output of a transformer of which only the last hidden states are known."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
