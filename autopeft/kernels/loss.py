"""The loss of a language model for each slot, without its logits: a few rows of them at a time are enough.

The gradient of the hidden states is computed with the loss, from the same logits, which are then dropped: two products
with the vocabulary in all, and nothing of its size is kept for the backward pass.

Shapes: K slots, N rows, D hidden size, V vocabulary.
"""

from typing import Any, Final, final

import torch
from torch.autograd.function import once_differentiable

from autopeft.errors import SpecError
from autopeft.kernels.dispatch import implementation
from autopeft.kernels.reference.cross_entropy import IGNORED
from autopeft.kernels.slots import Slots

CHUNK_BYTES: Final = 1 << 26


def linear_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_N: torch.Tensor,
    slots: Slots,
    *,
    bias_V: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each slot's mean cross-entropy over its rows whose label is not `IGNORED`, fp32 [K]; zero for a slot without.

    Differentiable in the hidden states alone: the head is the base model's, frozen.

    Raises:
        SpecError: The head is trainable, or the sizes do not fit the slots or each other.
    """
    if weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad):
        raise SpecError("head: it is trainable", hint="freeze it, or train this configuration alone")
    if hidden_ND.dim() != 2 or not len(hidden_ND) == len(labels_N) == slots.n_rows:
        raise SpecError(
            f"rows: got {tuple(hidden_ND.shape)} and {len(labels_N)} labels for slots of {slots.n_rows} rows",
            hint="flatten both to the slots' rows",
        )
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, labels_N, slots)  # pyright: ignore[reportReturnType]


def chunk_rows(vocabulary: int, item_bytes: int) -> int:
    """Rows whose logits exist at a time: as many as `CHUNK_BYTES` hold; at least 64, to keep products large."""
    return max(64, CHUNK_BYTES // (vocabulary * item_bytes) // 64 * 64)


@final
class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        slots: Slots,
    ) -> torch.Tensor:
        weight = weight.to(hidden.dtype)
        losses = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        grad = torch.empty_like(hidden) if hidden.requires_grad else None
        run = implementation("softmax_cross_entropy", hidden)
        size = chunk_rows(len(weight), hidden.element_size())
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden[rows], weight, None if bias is None else bias.to(weight.dtype))
            losses[rows] = run(logits, labels[rows])
            if grad is not None:
                torch.mm(logits, weight, out=grad[rows])
        share = _shares(labels, slots).to(losses.dtype)
        ctx.save_for_backward(grad, share)
        ctx.slots = slots
        return _sums(losses * share, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        grad, share = ctx.saved_tensors
        slots: Slots = ctx.slots
        factor = share * _spread(grad_outputs[0], slots)
        return (grad * factor.unsqueeze(-1)).to(grad.dtype), None, None, None, None


def _shares(labels_N: torch.Tensor, slots: Slots) -> torch.Tensor:
    """One over the number of counted rows of the slot, for each of its rows; of a slot without any, one."""
    counts = _sums((labels_N != IGNORED).to(torch.float32), slots)
    return 1.0 / _spread(counts.clamp(min=1.0), slots)


def _sums(values_N: torch.Tensor, slots: Slots) -> torch.Tensor:
    """Each slot's sum, in the order of its rows."""
    return torch.stack([part.sum() for part in values_N.split(slots.lengths)])


def _spread(values_K: torch.Tensor, slots: Slots) -> torch.Tensor:
    """Each slot's value, for each of its rows."""
    row = torch.arange(slots.n_rows, device=values_K.device)
    return values_K[torch.searchsorted(slots.offsets[1:].to(torch.int64), row, right=True)]
