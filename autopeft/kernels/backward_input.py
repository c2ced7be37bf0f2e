"""Kernel: the gradients of A and of X of every target from one read of X, with the mask that the forward pass drew.

A program takes a slot's rows, or one of a few parts of them, and a block of columns: it holds its block of every
target's dA until the last row, so nothing but dX and dA is written. Floor: the bytes of X once and of dX twice
(read and written; once where there is none yet).

Shapes: as in `reference/low_rank.py`.
"""

import torch

from autopeft.kernels.language import constexpr, launched, tl
from autopeft.kernels.slots import Slots
from autopeft.kernels.tiles import (
    MANY_BYTES,
    appended,
    ceil_div,
    drop_threshold,
    empty,
    kept,
    matmul,
    n_splits,
    narrow,
    place_of,
    power_of_two,
    rows_of_split,
    scale_of_kept,
)


@launched(unspecialized=("stream", "tokens"))
def backward_input_kernel(
    ds,
    x,
    a,
    da,
    dx,
    offsets,
    dropout,
    seeds,
    n_rows,
    width,
    rank,
    x_stride,
    dx_stride,
    a_stride,
    da_stride,
    split_stride,
    splits,
    stream,
    tokens,
    TARGETS: constexpr,
    DROPS: constexpr,
    ADDS: constexpr,
    BLOCK_M: constexpr,
    BLOCK_C: constexpr,
    BLOCK_R: constexpr,
):
    slot, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    low, high, first = rows_of_split(slot, split, splits, offsets, BLOCK_M)
    column, r = tl.program_id(1) * BLOCK_C, tl.arange(0, BLOCK_R)
    columns, ranks = column + tl.arange(0, BLOCK_C), r < rank
    inside = columns[None, :] < width
    seed, threshold = tl.load(seeds + slot), drop_threshold(tl.load(dropout + slot))
    factor = scale_of_kept(threshold, DROPS)
    mask_a = ranks[:, None] & inside
    factors, sums = empty(), empty()
    for t in tl.static_range(TARGETS):
        at_a = a + slot.to(tl.int64) * a_stride + (t * rank + r)[:, None] * width + columns[None, :]
        factors = appended(factors, narrow(tl.load(at_a, mask=mask_a, other=0.0), x.dtype.element_ty))
        sums = appended(sums, tl.zeros([BLOCK_R, BLOCK_C], tl.float32))
    for row in range(low, high, BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M)
        live, places = (rows < high)[:, None], place_of(rows - first, tokens)
        tile = tl.load(x + rows.to(tl.int64)[:, None] * x_stride + columns[None, :], mask=live & inside, other=0.0)
        at_dx = dx + rows.to(tl.int64)[:, None] * dx_stride + columns[None, :]
        back = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
        if ADDS:
            back = tl.load(at_dx, mask=live & inside, other=0.0).to(tl.float32)
        added = empty()
        for t in tl.static_range(TARGETS):
            at_ds = ds + (t * n_rows + rows).to(tl.int64)[:, None] * rank + r[None, :]
            grad = tl.load(at_ds, mask=live & ranks[None, :], other=0.0)
            branch = matmul(grad, factors[t], tl.zeros([BLOCK_M, BLOCK_C], tl.float32)) * factor
            used = tile
            if DROPS:
                keep = kept(seed, threshold, places, column, stream + t, BLOCK_M, BLOCK_C)
                used = tl.where(keep, tile, 0.0).to(tile.dtype)
                branch = tl.where(keep, branch, 0.0)
            back += branch
            added = appended(added, matmul(tl.trans(grad), used, sums[t]))
        sums = added
        tl.store(at_dx, narrow(back, dx.dtype.element_ty), mask=live & inside)
    for t in tl.static_range(TARGETS):
        at_da = da + split.to(tl.int64) * split_stride + slot.to(tl.int64) * da_stride
        at_da = at_da + (t * rank + r)[:, None] * width + columns[None, :]
        tl.store(at_da, narrow(sums[t] * factor, da.dtype.element_ty), mask=mask_a)


def shrink_backward(
    ds_TNR: torch.Tensor,
    x_ND: torch.Tensor,
    a_KTRD: torch.Tensor,
    slots: Slots,
    *,
    stream: int,
    dx_ND: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.low_rank.shrink_backward`."""
    n_slots, n_targets, rank, width = a_KTRD.shape
    out_ND = torch.empty_like(x_ND) if dx_ND is None else dx_ND
    block_r, item_bytes = power_of_two(rank), x_ND.element_size()
    many = item_bytes == 4 or n_targets * block_r * item_bytes >= MANY_BYTES
    block_m, block_c = 32, 32 if many else 64
    columns = ceil_div(width, block_c)
    splits = n_splits(slots.lengths, columns, block_m)
    da_SKTRD = x_ND.new_empty((splits, *a_KTRD.shape), dtype=a_KTRD.dtype if splits == 1 else torch.float32)
    backward_input_kernel[(n_slots * splits, columns)](
        ds_TNR,
        x_ND,
        a_KTRD,
        da_SKTRD,
        out_ND,
        slots.offsets,
        slots.dropout,
        slots.seed,
        len(x_ND),
        width,
        rank,
        x_ND.stride(0),
        out_ND.stride(0),
        a_KTRD.stride(0),
        da_SKTRD.stride(1),
        da_SKTRD.stride(0),
        splits,
        stream,
        slots.tokens,
        TARGETS=n_targets,
        DROPS=slots.drops,
        ADDS=dx_ND is not None,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        BLOCK_R=block_r,
        num_warps=8 if many else 4,
        num_stages=2,
        enable_fp_fusion=True,
    )
    da_KTRD = da_SKTRD[0] if splits == 1 else da_SKTRD.sum(dim=0).to(a_KTRD.dtype)
    return da_KTRD, out_ND
