"""Kernel: the gradients of S and of B from one read of dY, without atomics.

A program takes a block of one slot's rows and all columns: it has the rows' whole dS, and for each block of columns its
share of dB, which a second, small kernel sums over the slot's blocks in their order. The shares cost 2 R / BLOCK_M of
the bytes of dY, written and read; beyond `MOST_SHARED` ranks that is more than reading dY again, which is then done.

Shapes: as in `reference/low_rank.py`.
"""

from typing import Final

import torch

from autopeft.kernels.activations import activated, slope
from autopeft.kernels.language import constexpr, launched, tl
from autopeft.kernels.shares import sum_shares
from autopeft.kernels.slots import Slots
from autopeft.kernels.tiles import (
    MANY_BYTES,
    block_of_rows,
    ceil_div,
    matmul,
    n_splits,
    n_tiles,
    narrow,
    power_of_two,
    rows_of_split,
    slot_of_tile,
)

MOST_SHARED: Final = 32


@launched()
def backward_output_kernel(
    dy,
    s,
    b,
    ds,
    shares,
    offsets,
    scales,
    width,
    rank,
    dy_stride,
    s_stride,
    ds_stride,
    b_stride,
    n_slots,
    ACTIVATION: constexpr,
    SHARES: constexpr,
    BLOCK_M: constexpr,
    BLOCK_C: constexpr,
    BLOCK_R: constexpr,
    SLOTS: constexpr,
):
    tile = tl.program_id(0)
    slot, row, end, _ = slot_of_tile(tile, offsets, n_slots, BLOCK_M, SLOTS)
    rows, r = row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R)
    live, ranks = (rows < end)[:, None], (r < rank)[None, :]
    scale = tl.load(scales + slot)
    at_s = rows.to(tl.int64)[:, None] * s_stride + r[None, :]
    hidden = tl.load(s + at_s, mask=live & ranks, other=0.0).to(tl.float32)
    used = narrow(activated(hidden, ACTIVATION), dy.dtype.element_ty)
    dy_rows = dy + rows.to(tl.int64)[:, None] * dy_stride
    total = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for column in range(0, width, BLOCK_C):
        columns = column + tl.arange(0, BLOCK_C)
        inside = columns < width
        grad = tl.load(dy_rows + columns[None, :], mask=live & inside[None, :], other=0.0)
        at_b = columns[:, None] * rank + r[None, :]
        mask_b = inside[:, None] & ranks
        factors = narrow(tl.load(b + slot.to(tl.int64) * b_stride + at_b, mask=mask_b, other=0.0), grad.dtype)
        total = matmul(grad, factors, total)
        if SHARES:
            share = matmul(tl.trans(grad), used, tl.zeros([BLOCK_C, BLOCK_R], tl.float32)) * scale
            tl.store(shares + tile.to(tl.int64) * width * rank + at_b, share, mask=mask_b)
    total = total * slope(hidden, ACTIVATION) * scale
    at_ds = ds + rows.to(tl.int64)[:, None] * ds_stride + r[None, :]
    tl.store(at_ds, narrow(total, ds.dtype.element_ty), mask=live & ranks)


@launched()
def outer_kernel(
    dy,
    s,
    db,
    offsets,
    scales,
    width,
    rank,
    dy_stride,
    s_stride,
    db_stride,
    split_stride,
    splits,
    ACTIVATION: constexpr,
    BLOCK_M: constexpr,
    BLOCK_C: constexpr,
    BLOCK_R: constexpr,
):
    slot, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    low, high, _ = rows_of_split(slot, split, splits, offsets, BLOCK_M)
    columns, r = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    inside, ranks = columns < width, (r < rank)[None, :]
    total = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for row in range(low, high, BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M)
        live = (rows < high)[:, None]
        at_dy = dy + rows.to(tl.int64)[:, None] * dy_stride + columns[None, :]
        grad = tl.load(at_dy, mask=live & inside[None, :], other=0.0)
        at_s = s + rows.to(tl.int64)[:, None] * s_stride + r[None, :]
        hidden = activated(tl.load(at_s, mask=live & ranks, other=0.0).to(tl.float32), ACTIVATION)
        total = matmul(tl.trans(grad), narrow(hidden, grad.dtype), total)
    total = total * tl.load(scales + slot)
    at = db + split.to(tl.int64) * split_stride + slot.to(tl.int64) * db_stride + columns[:, None] * rank + r[None, :]
    tl.store(at, narrow(total, db.dtype.element_ty), mask=inside[:, None] & ranks)


def expand_backward(
    dy_NO: torch.Tensor, s_NR: torch.Tensor, b_KOR: torch.Tensor, slots: Slots, *, activation: str = "identity"
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.low_rank.expand_backward`."""
    n_slots, width, rank = b_KOR.shape
    shared, block_r, item_bytes = rank <= MOST_SHARED, power_of_two(rank), dy_NO.element_size()
    many = block_r * item_bytes >= MANY_BYTES
    block_m = block_of_rows(slots.lengths, most=32 if item_bytes == 4 else 128 if shared else 64)
    tiles = n_tiles(slots.lengths, block_m)
    ds_NR = torch.empty(s_NR.shape, dtype=s_NR.dtype, device=s_NR.device)
    shares = dy_NO.new_empty((tiles, width, rank) if shared else (0,), dtype=torch.float32)
    if tiles:
        backward_output_kernel[(tiles,)](
            dy_NO,
            s_NR,
            b_KOR,
            ds_NR,
            shares,
            slots.offsets,
            slots.scale,
            width,
            rank,
            dy_NO.stride(0),
            s_NR.stride(0),
            ds_NR.stride(0),
            b_KOR.stride(0),
            n_slots,
            ACTIVATION=activation,
            SHARES=shared,
            BLOCK_M=block_m,
            BLOCK_C=32 if many else 64,
            BLOCK_R=block_r,
            SLOTS=power_of_two(n_slots),
            num_warps=8 if many else 4,
            num_stages=2 if many else 3,
            enable_fp_fusion=True,
        )
    if not shared:
        return ds_NR, _outer(dy_NO, s_NR, b_KOR, slots, activation)
    db_KOR = torch.empty(b_KOR.shape, dtype=b_KOR.dtype, device=b_KOR.device)
    sum_shares(shares, db_KOR, slots, block_m)
    return ds_NR, db_KOR


def _outer(dy_NO: torch.Tensor, s_NR: torch.Tensor, b_KOR: torch.Tensor, slots: Slots, activation: str) -> torch.Tensor:
    """The gradient of B by a second read of dY."""
    n_slots, width, rank = b_KOR.shape
    block_m, block_c = 32, 32 if power_of_two(rank) * dy_NO.element_size() >= MANY_BYTES else 64
    columns = ceil_div(width, block_c)
    splits = n_splits(slots.lengths, columns, block_m)
    dtype = b_KOR.dtype if splits == 1 else torch.float32
    db_SKOR = dy_NO.new_empty((splits, n_slots, width, rank), dtype=dtype)
    outer_kernel[(n_slots * splits, columns)](
        dy_NO,
        s_NR,
        db_SKOR,
        slots.offsets,
        slots.scale,
        width,
        rank,
        dy_NO.stride(0),
        s_NR.stride(0),
        db_SKOR.stride(1),
        db_SKOR.stride(0),
        splits,
        ACTIVATION=activation,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        BLOCK_R=power_of_two(rank),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return db_SKOR[0] if splits == 1 else db_SKOR.sum(dim=0).to(b_KOR.dtype)
