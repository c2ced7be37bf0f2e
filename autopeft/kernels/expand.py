"""Kernel: Y += scale act(S) B^T for every slot, in place.

A program takes a block of one slot's rows and a block of columns. Floor: the bytes of Y, read once and written once.

Shapes: as in `reference/low_rank.py`.
"""

import torch

from autopeft.kernels.activations import activated
from autopeft.kernels.language import constexpr, launched, tl
from autopeft.kernels.slots import Slots
from autopeft.kernels.tiles import (
    MANY_BYTES,
    block_of_rows,
    ceil_div,
    matmul,
    n_tiles,
    narrow,
    power_of_two,
    slot_of_tile,
)


@launched()
def expand_kernel(
    y,
    s,
    b,
    offsets,
    scales,
    width,
    rank,
    y_stride,
    s_stride,
    b_stride,
    n_slots,
    ACTIVATION: constexpr,
    BLOCK_M: constexpr,
    BLOCK_C: constexpr,
    BLOCK_R: constexpr,
    SLOTS: constexpr,
):
    slot, row, end, _ = slot_of_tile(tl.program_id(0), offsets, n_slots, BLOCK_M, SLOTS)
    rows, r = row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    live, inside, ranks = (rows < end)[:, None], columns < width, r < rank
    at_s = s + rows.to(tl.int64)[:, None] * s_stride + r[None, :]
    hidden = activated(tl.load(at_s, mask=live & ranks[None, :], other=0.0).to(tl.float32), ACTIVATION)
    at_b = b + slot.to(tl.int64) * b_stride + columns[:, None] * rank + r[None, :]
    factors = tl.load(at_b, mask=inside[:, None] & ranks[None, :], other=0.0)
    at_y = y + rows.to(tl.int64)[:, None] * y_stride + columns[None, :]
    held = tl.load(at_y, mask=live & inside[None, :], other=0.0)
    zeros = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    update = matmul(narrow(hidden, held.dtype), tl.trans(narrow(factors, held.dtype)), zeros)
    total = held.to(tl.float32) + update * tl.load(scales + slot)
    tl.store(at_y, narrow(total, y.dtype.element_ty), mask=live & inside[None, :])


def expand_add(
    y_NO: torch.Tensor, s_NR: torch.Tensor, b_KOR: torch.Tensor, slots: Slots, *, activation: str = "identity"
) -> torch.Tensor:
    """As `reference.low_rank.expand_add`."""
    _, width, rank = b_KOR.shape
    block_r, block_c = power_of_two(rank), 64
    block_m = block_of_rows(slots.lengths, most=32 if block_r * y_NO.element_size() >= MANY_BYTES else 64)
    if tiles := n_tiles(slots.lengths, block_m):
        expand_kernel[(tiles, ceil_div(width, block_c))](
            y_NO,
            s_NR,
            b_KOR,
            slots.offsets,
            slots.scale,
            width,
            rank,
            y_NO.stride(0),
            s_NR.stride(0),
            b_KOR.stride(0),
            len(slots),
            ACTIVATION=activation,
            BLOCK_M=block_m,
            BLOCK_C=block_c,
            BLOCK_R=block_r,
            SLOTS=power_of_two(len(slots)),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return y_NO
