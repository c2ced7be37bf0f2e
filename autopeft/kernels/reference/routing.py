"""Which experts a row goes through (Gao et al. 2024, MoLA, arXiv 2402.08562): gates on stacked hidden vectors.

All experts' hidden vectors are computed side by side, and those of experts that a row does not go through are
multiplied by zero: no sorting, and shapes that do not change.

Shapes: K slots, N rows, E experts (the most of any slot), R ranks of an expert.
"""

import torch

from autopeft.kernels.slots import Slots


def route(
    logits_NE: torch.Tensor,
    s_NER: torch.Tensor,
    slots: Slots,
    experts_K: torch.Tensor,
    top_k_K: torch.Tensor,
    real_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gated hidden vectors [N, E, R], and over the real rows choices [K, E] and summed probabilities [K, E], fp32.

    Args:
        logits_NE: Router logits; of slot k the first experts_K[k] count.
        s_NER: Every expert's hidden vector.
        slots: Whose rows they are.
        experts_K: Experts of each slot, int32, at least one.
        top_k_K: Experts that a row goes through, int32, at most as many. Of equal logits the earlier expert is chosen.
        real_N: Bool; False for padding, which the balance does not count.
    """
    gates, probabilities, chosen = _gates(logits_NE, slots, experts_K, top_k_K)
    real = real_N.to(gates.dtype).unsqueeze(-1)
    return (
        (s_NER * gates.unsqueeze(-1)).to(s_NER.dtype),
        _sums(chosen.to(gates.dtype) * real, slots),
        _sums(probabilities * real, slots),
    )


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
    """Gradients of the logits [N, E] and of S [N, E, R], from those of the gated S and of the probabilities."""
    gates, probabilities, _ = _gates(logits_NE, slots, experts_K, top_k_K)
    dgates = (dh_NER.to(gates.dtype) * s_NER.to(gates.dtype)).sum(dim=-1)
    dp_NE = dp_KE.to(gates.dtype)[slot_of_row(slots)] * real_N.to(gates.dtype).unsqueeze(-1)
    dlogits = gates * (dgates - (gates * dgates).sum(dim=-1, keepdim=True))
    dlogits = dlogits + probabilities * (dp_NE - (probabilities * dp_NE).sum(dim=-1, keepdim=True))
    return dlogits.to(logits_NE.dtype), (dh_NER * gates.unsqueeze(-1)).to(s_NER.dtype)


def slot_of_row(slots: Slots) -> torch.Tensor:
    """The slot of each row, int64 [N]."""
    row = torch.arange(slots.n_rows, device=slots.offsets.device)
    return torch.searchsorted(slots.offsets[1:].to(torch.int64), row, right=True)


def _gates(
    logits_NE: torch.Tensor, slots: Slots, experts_K: torch.Tensor, top_k_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gates, probabilities and choices (bool), all [N, E]; fp32, or fp64 as the logits."""
    slot = slot_of_row(slots)
    logits = logits_NE.to(torch.promote_types(logits_NE.dtype, torch.float32))
    place = torch.arange(logits.shape[1], device=logits.device)
    logits = logits.masked_fill(place >= experts_K[slot].unsqueeze(-1), -torch.inf)
    order = logits.argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, place < top_k_K[slot].unsqueeze(-1))
    return logits.masked_fill(~chosen, -torch.inf).softmax(dim=-1), logits.softmax(dim=-1), chosen


def _sums(values_NE: torch.Tensor, slots: Slots) -> torch.Tensor:
    return torch.stack([part.sum(dim=0) for part in values_NE.split(slots.lengths)])
