"""AdamW for K configurations at once: each with its own rate, decay, moments, norm bound and step.

Shapes: K slots, P parameters of a slot, G groups of them with a rate and a decay each.
"""

from dataclasses import dataclass

import torch

_CLIP_EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """What a step needs beside the parameters; tensors on their device, so a change needs no new launch."""

    learning_rate: torch.Tensor
    """fp32 [K, G]."""
    weight_decay: torch.Tensor
    """fp32 [K, G], decoupled."""
    ends: torch.Tensor
    """int32 [G], ascending: group g ends before column ends[g]; the last is P."""
    betas: torch.Tensor
    """fp64 [K, 2]."""
    epsilon: torch.Tensor
    """fp32 [K]."""
    max_norm: torch.Tensor
    """fp32 [K]: the gradient of a slot is scaled down to this norm; infinite for no bound."""
    active: torch.Tensor
    """bool [K]: a slot that is not keeps everything as it is."""


def adamw_step(
    p_KP: torch.Tensor, g_KP: torch.Tensor, m_KP: torch.Tensor, v_KP: torch.Tensor, step_K: torch.Tensor, rule: AdamW
) -> torch.Tensor:
    """Parameters, both moments and steps changed in place; each slot's gradient norm before clipping, fp32 [K].

    A slot whose norm is not finite is left as it is, its step too: a diverging slot changes nothing, and says so.

    Args:
        p_KP: Parameters, one row a slot.
        g_KP: Their gradients.
        m_KP: First moments.
        v_KP: Second moments.
        step_K: Steps taken, int32.
        rule: Rates, bounds and who takes part.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"; the order of operations is torch's.
    """
    norm_K = g_KP.square().sum(dim=1).sqrt()
    takes = rule.active & norm_K.isfinite()
    step_K += takes.to(step_K.dtype)
    group = torch.searchsorted(rule.ends.to(torch.int64), torch.arange(p_KP.shape[1], device=p_KP.device), right=True)
    for slot in takes.nonzero().flatten().tolist():
        clip = (rule.max_norm[slot] / (norm_K[slot] + _CLIP_EPSILON)).clamp(max=1.0)
        beta1, beta2 = rule.betas[slot]
        left1, left2 = (1.0 - beta ** step_K[slot] for beta in (beta1, beta2))
        rate = rule.learning_rate[slot, group]
        g, p, m, v = g_KP[slot] * clip, p_KP[slot], m_KP[slot], v_KP[slot]
        p *= 1.0 - rate * rule.weight_decay[slot, group]
        m.add_((g - m) * (1.0 - beta1))
        v.mul_(beta2).add_(g * g * (1.0 - beta2))
        p -= rate * (m / left1) / (v.sqrt() / left2.sqrt() + rule.epsilon[slot])
    return norm_K.to(torch.float32)
