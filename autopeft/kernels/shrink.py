"""Kernel: the hidden vectors of every target from one read of X, dropout in registers.

A program takes the rows of one slot and all their columns; every target keeps its own accumulator and draws its own
mask. Floor: the bytes of X, once.

Shapes: as in `reference/low_rank.py`.
"""

import torch

from autopeft.kernels.language import constexpr, launched, tl
from autopeft.kernels.slots import Slots
from autopeft.kernels.tiles import (
    MANY_BYTES,
    appended,
    block_of_rows,
    drop_threshold,
    empty,
    kept,
    matmul,
    n_tiles,
    narrow,
    place_of,
    power_of_two,
    scale_of_kept,
    slot_of_tile,
)


@launched(unspecialized=("stream", "tokens"))
def shrink_kernel(
    x,
    a,
    s,
    offsets,
    dropout,
    seeds,
    n_rows,
    width,
    rank,
    x_stride,
    a_stride,
    n_slots,
    stream,
    tokens,
    TARGETS: constexpr,
    DROPS: constexpr,
    BLOCK_M: constexpr,
    BLOCK_C: constexpr,
    BLOCK_R: constexpr,
    SLOTS: constexpr,
):
    slot, row, end, first = slot_of_tile(tl.program_id(0), offsets, n_slots, BLOCK_M, SLOTS)
    rows, r = row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R)
    seed, threshold = tl.load(seeds + slot), drop_threshold(tl.load(dropout + slot))
    places = place_of(rows - first, tokens)
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    a_rows = a + slot.to(tl.int64) * a_stride + r[:, None] * width
    sums = empty()
    for _ in tl.static_range(TARGETS):
        sums = appended(sums, tl.zeros([BLOCK_M, BLOCK_R], tl.float32))
    for column in range(0, width, BLOCK_C):
        columns = column + tl.arange(0, BLOCK_C)
        inside = columns[None, :] < width
        tile = tl.load(x_rows + columns[None, :], mask=(rows < end)[:, None] & inside, other=0.0)
        added = empty()
        for t in tl.static_range(TARGETS):
            factors = tl.load(
                a_rows + t * rank * width + columns[None, :], mask=(r < rank)[:, None] & inside, other=0.0
            )
            used = tile
            if DROPS:
                keep = kept(seed, threshold, places, column, stream + t, BLOCK_M, BLOCK_C)
                used = tl.where(keep, tile, 0.0).to(tile.dtype)
            added = appended(added, matmul(used, tl.trans(narrow(factors, tile.dtype)), sums[t]))
        sums = added
    factor = scale_of_kept(threshold, DROPS)
    for t in tl.static_range(TARGETS):
        at = s + (t * n_rows + rows).to(tl.int64)[:, None] * rank + r[None, :]
        tl.store(at, narrow(sums[t] * factor, s.dtype.element_ty), mask=(rows < end)[:, None] & (r < rank)[None, :])


def shrink(x_ND: torch.Tensor, a_KTRD: torch.Tensor, slots: Slots, *, stream: int) -> torch.Tensor:
    """As `reference.low_rank.shrink`."""
    _, n_targets, rank, width = a_KTRD.shape
    s_TNR = x_ND.new_empty(n_targets, len(x_ND), rank)
    block_r = power_of_two(rank)
    rank_bytes = n_targets * block_r * x_ND.element_size()
    many = rank_bytes >= MANY_BYTES
    block_m = block_of_rows(slots.lengths, most=32 if many else 64)
    if tiles := n_tiles(slots.lengths, block_m):
        shrink_kernel[(tiles,)](
            x_ND,
            a_KTRD,
            s_TNR,
            slots.offsets,
            slots.dropout,
            slots.seed,
            len(x_ND),
            width,
            rank,
            x_ND.stride(0),
            a_KTRD.stride(0),
            len(slots),
            stream,
            slots.tokens,
            TARGETS=n_targets,
            DROPS=slots.drops,
            BLOCK_M=block_m,
            BLOCK_C=32 if many else 64,
            BLOCK_R=block_r,
            SLOTS=power_of_two(len(slots)),
            num_warps=8 if rank_bytes > MANY_BYTES else 4,
            num_stages=2 if many else 3,
            enable_fp_fusion=True,
        )
    return s_TNR
