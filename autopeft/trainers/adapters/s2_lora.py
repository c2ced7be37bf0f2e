"""Sparsely shared LoRA (Liu et al. 2023, arXiv 2309.11756): one B and A for all maps of a shape, a diagonal for each.

y += (alpha / R) * B diag(w) A x. A layer of a smaller rank uses the first rows of A and columns of B.

Shapes: I and O the maps' input and output width, R rank.
"""

import math
from typing import final

import torch
from torch import nn
from torch.nn import functional

from autopeft.spaces.methods.s2_lora import ranks_by_shape
from autopeft.trainers.adapters.adapter import LoraFactors, Placement
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates, in_layout
from autopeft.trainers.sites import LinearLike


@final
class SharedFactors(nn.Module):
    """A [R, I] and B [O, R] for the largest rank of any layer."""

    def __init__(self, *, d_in: int, d_out: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, d_in))
        self.b = nn.Parameter(torch.empty(d_out, rank))
        for factor in (self.a, self.b):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)


@final
class SharedPair(AbstractSiteUpdate):
    """One map's diagonal, and the factors it uses; of all maps of a shape only the first owns them as a module."""

    def __init__(self, factors: SharedFactors, *, owner: bool, rank: int, alpha: float, sparsity: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(rank))
        self.sparsity = sparsity
        self.scale = alpha / rank
        self._factors = (factors,)
        if owner:
            self.factors = factors

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        a, b = self._parts()
        hidden = functional.linear(x, a.to(x.dtype)).flatten(0, -2).to(output.dtype)
        return torch.addmm(output.flatten(0, -2), hidden, b.to(output.dtype).t(), alpha=self.scale).view(output.shape)

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A [R, I], and B diag(w) [O, R]."""
        (factors,) = self._factors
        rank = len(self.weights)
        return factors.a[:rank], factors.b[:, :rank] * self.weights

    def penalty(self) -> torch.Tensor | None:
        return self.sparsity * self.weights.abs().sum() if self.sparsity else None

    @torch.no_grad()
    def as_lora(self) -> LoraFactors:
        a, b = self._parts()
        return LoraFactors(a=a.clone(), b=b, alpha=self.scale * len(a))

    @torch.no_grad()
    def fold(
        self, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        a, b = self._parts()
        return weight + in_layout(linear, self.scale * (b.float() @ a.float())), bias


def build_s2_lora(placement: Placement) -> SiteUpdates:
    """Kaiming-uniform A and B (a = sqrt(5)), zero diagonals, so that nothing changes at the start.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    ranks = ranks_by_shape(placement.shape, placement.setting)
    pairs: dict[str, SharedPair] = {}
    for site in placement.target_sites():
        size = site.d_in, site.d_out
        owner = size not in placement.shared
        if owner:
            placement.shared[size] = SharedFactors(
                d_in=site.d_in, d_out=site.d_out, rank=ranks[size], generator=placement.generator
            )
        factors = placement.shared[size]
        assert isinstance(factors, SharedFactors)
        pairs[site.name] = SharedPair(
            factors,
            owner=owner,
            rank=placement.size("rank"),
            alpha=placement.real("alpha"),
            sparsity=placement.real("sparsity"),
        )
    return SiteUpdates(pairs)
