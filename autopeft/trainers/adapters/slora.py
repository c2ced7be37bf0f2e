"""Structured LoRA (Guo et al. 2025, arXiv 2502.14482): y += (alpha / R) * B N A x.

Shapes: I and O the map's input and output width, R rank.
"""

import math
from typing import final

import torch
from torch import nn
from torch.nn import functional

from autopeft.trainers.adapters.adapter import LoraFactors, Placement
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates, in_layout
from autopeft.trainers.sites import LinearLike


@final
class StructuredPair(AbstractSiteUpdate):
    """LoRA's two factors with a trained matrix between them."""

    def __init__(self, *, d_in: int, d_out: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(rank, d_in))  # [R, I]
        self.n = nn.Parameter(torch.zeros(rank, rank))  # [R, R]
        self.b = nn.Parameter(torch.zeros(d_out, rank))  # [O, R]
        self.scale = alpha / rank

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` [..., O] plus the update for `x` [..., I]; N is multiplied into A, the smaller product."""
        hidden = functional.linear(x, (self.n @ self.a).to(x.dtype)).flatten(0, -2).to(output.dtype)
        b = self.b.to(output.dtype).t()
        return torch.addmm(output.flatten(0, -2), hidden, b, alpha=self.scale).view(output.shape)

    @torch.no_grad()
    def as_lora(self) -> LoraFactors:
        return LoraFactors(a=self.n @ self.a, b=self.b.detach(), alpha=self.scale * len(self.a))

    @torch.no_grad()
    def fold(
        self, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return weight + in_layout(linear, self.scale * (self.b.float() @ self.n.float() @ self.a.float())), bias


def build_slora(placement: Placement) -> SiteUpdates:
    """Kaiming-uniform A and N (a = sqrt(5)), zero B.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    pairs: dict[str, StructuredPair] = {}
    for site in placement.target_sites():
        pair = StructuredPair(
            d_in=site.d_in, d_out=site.d_out, rank=placement.size("rank"), alpha=placement.real("alpha")
        )
        for factor in (pair.a, pair.n):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=placement.generator)
        pairs[site.name] = pair
    return SiteUpdates(pairs)
