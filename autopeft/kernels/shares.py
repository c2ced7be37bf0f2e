"""Kernel: what blocks of rows add to a slot, summed over the slot's blocks in their order: no atomics.

Shapes: K slots.
"""

from typing import Final

import torch

from autopeft.kernels.language import constexpr, launched, tl
from autopeft.kernels.slots import Slots
from autopeft.kernels.tiles import ceil_div, narrow, power_of_two

_BLOCK: Final = 1024


@launched()
def sum_shares_kernel(
    shares, out, offsets, size, out_stride, n_slots, BLOCK_M: constexpr, BLOCK: constexpr, SLOTS: constexpr
):
    slot, k = tl.program_id(0), tl.arange(0, SLOTS)
    start = tl.load(offsets + k, mask=k < n_slots, other=0)
    end = tl.load(offsets + k + 1, mask=k < n_slots, other=0)
    tiles = (end - start + BLOCK_M - 1) // BLOCK_M
    first, count = tl.sum(tl.where(k < slot, tiles, 0), 0), tl.sum(tl.where(k == slot, tiles, 0), 0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    share = shares + first.to(tl.int64) * size + at
    for _ in range(0, count):
        total += tl.load(share, mask=at < size, other=0.0)
        share += size
    tl.store(out + slot.to(tl.int64) * out_stride + at, narrow(total, out.dtype.element_ty), mask=at < size)


def sum_shares(shares: torch.Tensor, out: torch.Tensor, slots: Slots, block_m: int) -> None:
    """`out` [K, ...] as the sums of `shares` [tiles, ...], fp32, over each slot's blocks of `block_m` rows."""
    size = out[0].numel()
    sum_shares_kernel[(len(slots), ceil_div(size, _BLOCK))](
        shares,
        out,
        slots.offsets,
        size,
        out.stride(0),
        len(slots),
        BLOCK_M=block_m,
        BLOCK=_BLOCK,
        SLOTS=power_of_two(len(slots)),
        enable_fp_fusion=True,
    )
