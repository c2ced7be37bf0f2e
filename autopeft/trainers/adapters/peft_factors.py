"""Types of peft that are LoRA once they are trained: their factors.

Shapes: I and O the map's input and output width, K rank.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, cast

import torch
from torch import nn

from autopeft.trainers.adapters.peft_build import ADAPTER

LowRank = tuple[torch.Tensor, torch.Tensor, float]
"""A [K, I], B [O, K] and the scale of B A in the weight."""


def _adalora(layer: nn.Module) -> LowRank:
    """The triplets that were not taken away, A with its entries of E in it."""
    a, e, b = (layer.get_parameter(f"lora_{name}.{ADAPTER}") for name in "AEB")
    scaling, rank = cast("dict[str, float]", layer.scaling)[ADAPTER], layer.get_buffer(f"ranknum.{ADAPTER}")
    kept = e[:, 0] != 0
    return (a * e)[kept], b[:, kept], scaling / (float(rank) + 1e-5)


def _osf(layer: nn.Module) -> LowRank:
    """What the trained directions make less what they made at the start: twice the rank."""
    u, s, v = (layer.get_parameter(f"osf_svd_params.{ADAPTER}.{name}_low") for name in "USV")
    u_start, s_start, v_start = (layer.get_buffer(f"_osf_{name}_low_init.{ADAPTER}") for name in "USV")
    return torch.cat((v, v_start)), torch.cat((u * s, -u_start * s_start), dim=1), 1.0


def _poly(layer: nn.Module) -> LowRank:
    """The mixture outside of training: the weights are sigmoids, scaled to a sum of one in each split."""
    a, b = (layer.get_parameter(f"poly_lora_{name}.{ADAPTER}") for name in "AB")  # [splits, skills, I or K, K or O]
    splits, skills, _, rank = a.shape
    weights = layer.get_parameter(f"poly_router.{ADAPTER}.module_logits")[0].view(splits, skills).sigmoid()
    weights = weights / (weights.sum(dim=1, keepdim=True) + _EPS)
    mixed_a = torch.einsum("qs,qsir->qir", weights, a).flatten(0, 1)
    mixed_b = torch.einsum("qs,qsro->rqo", weights, b).flatten(1)
    return mixed_a.t(), mixed_b.t(), 1.0 / rank


def _unilora(layer: nn.Module) -> LowRank:
    a, b = cast("Callable[[str], tuple[torch.Tensor, torch.Tensor]]", layer._get_lora_matrices)(ADAPTER)
    return a, b, 1.0


_EPS: Final = 1e-12
"""Peft's, in the sum of POLY's weights."""
LOW_RANK: Final[Mapping[str, Callable[[nn.Module], LowRank]]] = MappingProxyType(
    {"ADALORA": _adalora, "OSF": _osf, "POLY": _poly, "UNILORA": _unilora}
)
"""By type; of LoRA itself see `PeftSite.low_rank`."""
