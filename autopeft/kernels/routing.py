"""Kernel: gates of routed experts, forward and backward, with what the balance of each slot needs.

A program takes a block of one slot's rows and all experts; the choice is made anew in the backward pass, from the same
logits and so the same. Floor: the bytes of S, read once and written once.

Shapes: as in `reference/routing.py`.
"""

from typing import Final

import torch

from autopeft.kernels.language import constexpr, launched, tl, triton
from autopeft.kernels.shares import sum_shares
from autopeft.kernels.slots import Slots
from autopeft.kernels.tiles import n_tiles, narrow, power_of_two, slot_of_tile

_BLOCK_M: Final = 32


@triton.jit
def gates_of(logits, n_experts, top_k, BLOCK_M: constexpr, BLOCK_E: constexpr):
    """Gates, probabilities and choices of rows of fp32 logits, all [BLOCK_M, BLOCK_E]; the choices as fp32."""
    expert = tl.arange(0, BLOCK_E)[None, :]
    logits = tl.where(expert < n_experts, logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    chosen = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for _ in range(0, top_k):
        left = tl.where(chosen > 0, float("-inf"), logits)
        first = tl.min(tl.where(left == tl.max(left, 1)[:, None], expert, BLOCK_E), 1)
        chosen = tl.where(expert == first[:, None], 1.0, chosen)
    kept = weights * chosen
    return kept / tl.sum(kept, 1)[:, None], weights / tl.sum(weights, 1)[:, None], chosen


@launched()
def route_kernel(
    logits,
    s,
    hidden,
    shares,
    offsets,
    experts,
    top_ks,
    real,
    most,
    rank,
    n_slots,
    BLOCK_M: constexpr,
    BLOCK_E: constexpr,
    BLOCK_R: constexpr,
    SLOTS: constexpr,
):
    tile = tl.program_id(0)
    slot, row, end, _ = slot_of_tile(tile, offsets, n_slots, BLOCK_M, SLOTS)
    rows, expert, r = row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_R)
    live, inside = (rows < end)[:, None], (expert < most)[None, :]
    values = tl.load(logits + rows.to(tl.int64)[:, None] * most + expert[None, :], mask=live & inside, other=0.0)
    n_experts, top_k = tl.load(experts + slot), tl.load(top_ks + slot)
    gates, probabilities, chosen = gates_of(values.to(tl.float32), n_experts, top_k, BLOCK_M, BLOCK_E)
    counted = (tl.load(real + rows, mask=rows < end, other=0) != 0).to(tl.float32)[:, None]
    at_share = shares + tile.to(tl.int64) * 2 * most + expert
    tl.store(at_share, tl.sum(chosen * counted, 0), mask=expert < most)
    tl.store(at_share + most, tl.sum(probabilities * counted, 0), mask=expert < most)
    for e in range(0, most):
        gate = tl.sum(tl.where(expert[None, :] == e, gates, 0.0), 1)[:, None]
        at = (rows.to(tl.int64)[:, None] * most + e) * rank + r[None, :]
        mask = live & (r < rank)[None, :]
        gated = tl.load(s + at, mask=mask, other=0.0).to(tl.float32) * gate
        tl.store(hidden + at, narrow(gated, hidden.dtype.element_ty), mask=mask)


@launched()
def route_backward_kernel(
    dh,
    dp,
    logits,
    s,
    dlogits,
    ds,
    offsets,
    experts,
    top_ks,
    real,
    most,
    rank,
    n_slots,
    BLOCK_M: constexpr,
    BLOCK_E: constexpr,
    BLOCK_R: constexpr,
    SLOTS: constexpr,
):
    slot, row, end, _ = slot_of_tile(tl.program_id(0), offsets, n_slots, BLOCK_M, SLOTS)
    rows, expert, r = row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_R)
    live, inside = (rows < end)[:, None], (expert < most)[None, :]
    at_logits = rows.to(tl.int64)[:, None] * most + expert[None, :]
    values = tl.load(logits + at_logits, mask=live & inside, other=0.0)
    n_experts, top_k = tl.load(experts + slot), tl.load(top_ks + slot)
    gates, probabilities, _ = gates_of(values.to(tl.float32), n_experts, top_k, BLOCK_M, BLOCK_E)
    dgates = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for e in range(0, most):
        at = (rows.to(tl.int64)[:, None] * most + e) * rank + r[None, :]
        mask = live & (r < rank)[None, :]
        gate = tl.sum(tl.where(expert[None, :] == e, gates, 0.0), 1)[:, None]
        grad = tl.load(dh + at, mask=mask, other=0.0).to(tl.float32)
        along = tl.sum(grad * tl.load(s + at, mask=mask, other=0.0).to(tl.float32), 1)[:, None]
        dgates = tl.where(expert[None, :] == e, along, dgates)
        tl.store(ds + at, narrow(grad * gate, ds.dtype.element_ty), mask=mask)
    counted = (tl.load(real + rows, mask=rows < end, other=0) != 0).to(tl.float32)[:, None]
    slope = tl.load(dp + slot * most + expert, mask=expert < most, other=0.0).to(tl.float32)[None, :] * counted
    total = gates * (dgates - tl.sum(gates * dgates, 1)[:, None])
    total += probabilities * (slope - tl.sum(probabilities * slope, 1)[:, None])
    tl.store(dlogits + at_logits, narrow(total, dlogits.dtype.element_ty), mask=live & inside)


def route(
    logits_NE: torch.Tensor,
    s_NER: torch.Tensor,
    slots: Slots,
    experts_K: torch.Tensor,
    top_k_K: torch.Tensor,
    real_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `reference.routing.route`."""
    _, most, rank = s_NER.shape
    tiles = n_tiles(slots.lengths, _BLOCK_M)
    hidden_NER = torch.empty_like(s_NER)
    shares = logits_NE.new_empty((tiles, 2, most), dtype=torch.float32)
    if tiles:
        route_kernel[(tiles,)](
            logits_NE,
            s_NER,
            hidden_NER,
            shares,
            slots.offsets,
            experts_K,
            top_k_K,
            real_N,
            most,
            rank,
            len(slots),
            **_blocks(most, rank, slots),
        )
    counts_K2E = logits_NE.new_empty((len(slots), 2, most), dtype=torch.float32)
    sum_shares(shares, counts_K2E, slots, _BLOCK_M)
    return hidden_NER, counts_K2E[:, 0], counts_K2E[:, 1]


def route_backward(
    dh_NER: torch.Tensor,
    dp_KE: torch.Tensor,
    logits_NE: torch.Tensor,
    s_NER: torch.Tensor,
    slots: Slots,
    experts_K: torch.Tensor,
    top_k_K: torch.Tensor,
    real_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.routing.route_backward`."""
    _, most, rank = s_NER.shape
    dlogits_NE, ds_NER = torch.empty_like(logits_NE), torch.empty_like(s_NER)
    if tiles := n_tiles(slots.lengths, _BLOCK_M):
        route_backward_kernel[(tiles,)](
            dh_NER,
            dp_KE,
            logits_NE,
            s_NER,
            dlogits_NE,
            ds_NER,
            slots.offsets,
            experts_K,
            top_k_K,
            real_N,
            most,
            rank,
            len(slots),
            **_blocks(most, rank, slots),
        )
    return dlogits_NE, ds_NER


def _blocks(most: int, rank: int, slots: Slots) -> dict[str, int | bool]:
    return {
        "BLOCK_M": _BLOCK_M,
        "BLOCK_E": power_of_two(most, least=2),
        "BLOCK_R": power_of_two(rank),
        "SLOTS": power_of_two(len(slots)),
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
