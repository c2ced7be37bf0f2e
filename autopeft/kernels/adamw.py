"""Kernel: gradient norm and AdamW of every slot over the flat bank.

One launch, a program a slot, which reads its gradients twice, the second time from L2; beyond `ONE_LAUNCH` parameters a
slot one multiprocessor is too slow, and a first launch leaves partial sums that every program of the second adds up in
the same order. Floor: the bytes of gradient (once), parameters and moments (read and written).

Shapes: as in `reference/adamw.py`.
"""

from typing import Final

import torch

from autopeft.kernels.language import constexpr, launched, tl, triton
from autopeft.kernels.reference.adamw import AdamW
from autopeft.kernels.tiles import ceil_div

ONE_LAUNCH: Final = 1 << 20
_BLOCK: Final = 2048
_CHUNKS: Final = 64


@triton.jit
def square_sum(g_row, low, high, BLOCK: constexpr):
    """Sum of the squares of a row's gradients from `low` to before `high`."""
    total = tl.zeros([BLOCK], tl.float32)
    for column in range(low, high, BLOCK):
        columns = column + tl.arange(0, BLOCK)
        g = tl.load(g_row + columns, mask=columns < high, other=0.0).to(tl.float32)
        total += g * g
    return tl.sum(total, 0)


@triton.jit
def update(
    p, g, m, v, rates, decays, ends, betas, epsilons, slot, t, clip, row, low, high, GROUPS: constexpr, BLOCK: constexpr
):
    """One step of a row's parameters from `low` to before `high`."""
    beta1, beta2 = tl.load(betas + 2 * slot), tl.load(betas + 2 * slot + 1)
    left1 = (1.0 - tl.exp(t.to(tl.float64) * tl.log(beta1))).to(tl.float32)
    left2 = tl.sqrt(1.0 - tl.exp(t.to(tl.float64) * tl.log(beta2))).to(tl.float32)
    new1, new2, old2 = (1.0 - beta1).to(tl.float32), (1.0 - beta2).to(tl.float32), beta2.to(tl.float32)
    epsilon = tl.load(epsilons + slot)
    for column in range(low, high, BLOCK):
        columns = column + tl.arange(0, BLOCK)
        live, at = columns < high, row + columns
        group = tl.zeros([BLOCK], tl.int32)
        for k in tl.static_range(GROUPS - 1):
            group += (columns >= tl.load(ends + k)).to(tl.int32)
        rate = tl.load(rates + slot * GROUPS + group)
        gradient = tl.load(g + at, mask=live, other=0.0).to(tl.float32) * clip
        first, second = tl.load(m + at, mask=live, other=0.0), tl.load(v + at, mask=live, other=0.0)
        first += (gradient - first) * new1
        second = second * old2 + gradient * gradient * new2
        value = tl.load(p + at, mask=live, other=0.0) * (1.0 - rate * tl.load(decays + slot * GROUPS + group))
        value -= rate * (first / left1) / (tl.sqrt(second) / left2 + epsilon)
        tl.store(p + at, value, mask=live)
        tl.store(m + at, first, mask=live)
        tl.store(v + at, second, mask=live)


@triton.jit
def clip_of(norm, max_norms, slot):
    """The factor that brings a slot's gradient within its bound."""
    return tl.minimum(tl.load(max_norms + slot) / (norm + 1e-6), 1.0)


@launched()
def adamw_kernel(
    p,
    g,
    m,
    v,
    steps,
    norms,
    rates,
    decays,
    ends,
    betas,
    epsilons,
    max_norms,
    active,
    size,
    g_stride,
    GROUPS: constexpr,
    BLOCK: constexpr,
):
    slot = tl.program_id(0)
    row = slot.to(tl.int64)
    norm = tl.sqrt(square_sum(g + row * g_stride, 0, size, BLOCK))
    tl.store(norms + slot, norm)
    if (tl.load(active + slot) != 0) & (norm < float("inf")):
        t = tl.load(steps + slot) + 1
        tl.store(steps + slot, t)
        clip, at = clip_of(norm, max_norms, slot), row * g_stride
        update(p, g, m, v, rates, decays, ends, betas, epsilons, slot, t, clip, at, 0, size, GROUPS, BLOCK)


@launched()
def square_sum_kernel(g, sums, size, g_stride, chunk, CHUNKS: constexpr, BLOCK: constexpr):
    slot, low = tl.program_id(0), tl.program_id(1) * chunk
    total = square_sum(g + slot.to(tl.int64) * g_stride, low, tl.minimum(low + chunk, size), BLOCK)
    tl.store(sums + slot * CHUNKS + tl.program_id(1), total)


@launched()
def adamw_chunk_kernel(
    p,
    g,
    m,
    v,
    steps,
    sums,
    rates,
    decays,
    ends,
    betas,
    epsilons,
    max_norms,
    active,
    size,
    g_stride,
    chunk,
    GROUPS: constexpr,
    CHUNKS: constexpr,
    BLOCK: constexpr,
):
    slot, low = tl.program_id(0), tl.program_id(1) * chunk
    norm = tl.sqrt(tl.sum(tl.load(sums + slot * CHUNKS + tl.arange(0, CHUNKS)), 0))
    if (tl.load(active + slot) != 0) & (norm < float("inf")):
        t, high = tl.load(steps + slot) + 1, tl.minimum(low + chunk, size)
        clip, at = clip_of(norm, max_norms, slot), slot.to(tl.int64) * g_stride
        update(p, g, m, v, rates, decays, ends, betas, epsilons, slot, t, clip, at, low, high, GROUPS, BLOCK)


def adamw_step(
    p_KP: torch.Tensor, g_KP: torch.Tensor, m_KP: torch.Tensor, v_KP: torch.Tensor, step_K: torch.Tensor, rule: AdamW
) -> torch.Tensor:
    """As `reference.adamw.adamw_step`; the four banks are fp32 and without gaps."""
    n_slots, size = p_KP.shape
    groups = rule.learning_rate.shape[1]
    settings = (
        rule.learning_rate,
        rule.weight_decay,
        rule.ends,
        rule.betas,
        rule.epsilon,
        rule.max_norm,
        rule.active,
        size,
        g_KP.stride(0),
    )
    if size <= ONE_LAUNCH:
        norm_K = torch.empty(n_slots, dtype=torch.float32, device=p_KP.device)
        adamw_kernel[(n_slots,)](
            p_KP, g_KP, m_KP, v_KP, step_K, norm_K, *settings, GROUPS=groups, BLOCK=_BLOCK, num_warps=8
        )
        return norm_K
    chunk = ceil_div(size, _CHUNKS * _BLOCK) * _BLOCK
    sums = torch.empty(n_slots, _CHUNKS, dtype=torch.float32, device=p_KP.device)
    grid = (n_slots, _CHUNKS)
    square_sum_kernel[grid](g_KP, sums, size, g_KP.stride(0), chunk, CHUNKS=_CHUNKS, BLOCK=_BLOCK, num_warps=8)
    adamw_chunk_kernel[grid](
        p_KP, g_KP, m_KP, v_KP, step_K, sums, *settings, chunk, GROUPS=groups, CHUNKS=_CHUNKS, BLOCK=_BLOCK, num_warps=8
    )
    norm_K = sums.sum(dim=1).sqrt()
    step_K += (rule.active & norm_K.isfinite()).to(step_K.dtype)
    return norm_K
