"""Kernel: the cross-entropy of rows of logits, and its gradient written over them.

A program takes a row: one pass for its maximum and sum, a second, from L2, that writes. Floor: the bytes of the logits,
read once and written once.

Shapes: as in `reference/cross_entropy.py`.
"""

import torch

from autopeft.kernels.language import constexpr, launched, tl
from autopeft.kernels.reference.cross_entropy import IGNORED
from autopeft.kernels.tiles import narrow, power_of_two


@launched()
def cross_entropy_kernel(logits, labels, losses, size, stride, ignored, BLOCK: constexpr):
    row = tl.program_id(0)
    at_row, label = logits + row.to(tl.int64) * stride, tl.load(labels + row)
    highest, total = float("-inf"), 0.0
    highest, total = tl.full([], highest, tl.float32), tl.full([], total, tl.float32)
    for column in range(0, size, BLOCK):
        columns = column + tl.arange(0, BLOCK)
        values = tl.load(at_row + columns, mask=columns < size, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(values, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(values - higher), 0)
        highest = higher
    log_total = highest + tl.log(total)
    counted = label != ignored
    inside = counted & (label >= 0) & (label < size)
    chosen = tl.load(at_row + label, mask=inside, other=float("nan")).to(tl.float32)
    tl.store(losses + row, tl.where(counted, log_total - chosen, 0.0))
    for column in range(0, size, BLOCK):
        columns = column + tl.arange(0, BLOCK)
        values = tl.load(at_row + columns, mask=columns < size, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(values - log_total) - (columns == label).to(tl.float32)
        gradient = tl.where(counted, gradient, 0.0)
        tl.store(at_row + columns, narrow(gradient, logits.dtype.element_ty), mask=columns < size)


def softmax_cross_entropy(logits_MV: torch.Tensor, labels_M: torch.Tensor) -> torch.Tensor:
    """As `reference.cross_entropy.softmax_cross_entropy`; the loss of a label that there is no logit for is NaN."""
    n_rows, size = logits_MV.shape
    losses_M = torch.empty(n_rows, dtype=torch.float32, device=logits_MV.device)
    if n_rows:
        cross_entropy_kernel[(n_rows,)](
            logits_MV,
            labels_M,
            losses_M,
            size,
            logits_MV.stride(0),
            IGNORED,
            BLOCK=min(4096, power_of_two(size)),
            num_warps=8,
            enable_fp_fusion=True,
        )
    return losses_M
