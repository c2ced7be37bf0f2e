"""Routed low-rank experts as autograd sees them, and the loss that keeps them balanced.

Shapes: K slots, N rows, E experts (the most of any slot), R ranks of an expert, D input and O output width.
"""

from typing import Any, Final, final

import torch
from torch.autograd.function import once_differentiable

from autopeft.errors import SpecError
from autopeft.kernels.dispatch import implementation
from autopeft.kernels.low_rank import expand_add, shrink
from autopeft.kernels.slots import Slots

ROUTING: Final = ("route", "route_backward")
"""Operations between the two halves of the branch, both passes."""


def routed_lora(
    x_ND: torch.Tensor,
    y_NO: torch.Tensor,
    router_KED: torch.Tensor,
    a_KERD: torch.Tensor,
    b_KOER: torch.Tensor,
    slots: Slots,
    *,
    experts_K: torch.Tensor,
    top_k_K: torch.Tensor,
    real_N: torch.Tensor,
    stream: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`y_NO` plus every row's experts, in place; choices [K, E] and summed probabilities [K, E] over real rows.

    The router sees all of a row, the experts one mask of it. Differentiable in X, Y, router, A, B and, through the
    probabilities, `balance_loss`.

    Args:
        x_ND: Rows, slot after slot.
        y_NO: The frozen map of them.
        router_KED: One row of weights an expert.
        a_KERD: Down projections.
        b_KOER: Up projections.
        slots: Whose rows they are.
        experts_K: Experts of each slot, int32; padded ones have no gate.
        top_k_K: Experts that a row goes through, int32, at most as many.
        real_N: Bool; False for padding, which is routed but not counted.
        stream: Of the experts' mask.

    Raises:
        SpecError: The sizes do not fit.
    """
    n_slots, n_experts, rank, width = a_KERD.shape
    if router_KED.shape != (n_slots, n_experts, width) or b_KOER.shape[2:] != (n_experts, rank):
        raise SpecError(
            f"experts: router {tuple(router_KED.shape)}, A {tuple(a_KERD.shape)}, B {tuple(b_KOER.shape)}",
            hint="give [K, E, D], [K, E, R, D] and [K, O, E, R]",
        )
    stacked = n_experts * rank
    (logits_NE,) = shrink(x_ND, router_KED.unsqueeze(1), slots.evaluating(), stream=stream)
    (s_NS,) = shrink(x_ND, a_KERD.reshape(n_slots, 1, stacked, width), slots, stream=stream)
    hidden, choices, probabilities = _Route.apply(
        logits_NE, s_NS.view(-1, n_experts, rank), slots, experts_K, top_k_K, real_N
    )  # pyright: ignore[reportGeneralTypeIssues]
    y_NO = expand_add(y_NO, hidden.flatten(1), b_KOER.reshape(n_slots, -1, stacked), slots)
    return y_NO, choices, probabilities


def balance_loss(choices_KE: torch.Tensor, probabilities_KE: torch.Tensor, experts_K: torch.Tensor) -> torch.Tensor:
    """E times the sum over experts of f_e P_e for each slot, fp32 [K]: one at perfect balance, E at none.

    f_e is the share of all choices that fell on expert e, P_e its mean probability; sums over several maps may be
    given. Zero for a slot without real rows.

    Source: Fedus et al. 2022, arXiv 2101.03961, equations 4 to 6.
    """
    shares = choices_KE / choices_KE.sum(dim=1, keepdim=True).clamp(min=1.0)
    totals = probabilities_KE.detach().sum(dim=1, keepdim=True)
    means = probabilities_KE / totals.clamp(min=torch.finfo(totals.dtype).tiny)
    return experts_K * (shares * means).sum(dim=1)


@final
class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        s: torch.Tensor,
        slots: Slots,
        experts: torch.Tensor,
        top_k: torch.Tensor,
        real: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(logits, s, experts, top_k, real)
        ctx.slots = slots
        results = implementation("route", s, rank=s.shape[2])(logits, s, slots, experts, top_k, real)
        ctx.mark_non_differentiable(results[1])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        logits, s, experts, top_k, real = ctx.saved_tensors
        dh, _, dp = grad_outputs
        run = implementation("route_backward", s, rank=s.shape[2])
        dlogits, ds = run(dh.contiguous(), dp.contiguous(), logits, s, ctx.slots, experts, top_k, real)
        return dlogits, ds, None, None, None, None
