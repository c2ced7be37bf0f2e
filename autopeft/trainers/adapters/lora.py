"""Low-rank updates beside frozen linear maps (Hu et al. 2021, arXiv 2106.09685).

Shapes: I and O the map's input and output width, R rank.
"""

import math
from typing import final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, LoraFactors, Placement
from autopeft.trainers.sites import Conv1D, LinearLike


@final
class LoraPair(nn.Module):
    """The two factors at one site: y += (alpha / R) * B A dropout(x)."""

    def __init__(self, *, d_in: int, d_out: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(rank, d_in))  # [R, I]
        self.b = nn.Parameter(torch.zeros(d_out, rank))  # [O, R]
        self.alpha = alpha
        self.scale = alpha / rank
        self.dropout = dropout

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` [..., O] plus the update for the input `x` [..., I], in the output's dtype.

        The factors are cast to the activations' dtype, so a bf16 base computes in bf16 from fp32 masters; the
        scaled product is added in one call that needs no temporary of the output's size.
        """
        dropped = functional.dropout(x, self.dropout, training=self.training) if self.dropout else x
        hidden = functional.linear(dropped, self.a.to(x.dtype)).flatten(0, -2).to(output.dtype)
        b = self.b.to(output.dtype).t()
        return torch.addmm(output.flatten(0, -2), hidden, b, alpha=self.scale).view(output.shape)

    @torch.no_grad()
    def factors(self) -> LoraFactors:
        """The pair as it computes now, rounded where its factors are."""
        return LoraFactors(a=self.a.detach(), b=self.b.detach(), alpha=self.alpha, dropout=self.dropout)

    @torch.no_grad()
    def delta(self, linear: LinearLike) -> torch.Tensor:
        """The update as a matrix, [O, I] or in the transposed layout of `linear.weight`, fp32."""
        delta = self.scale * (self.b.float() @ self.a.float())
        return delta.t() if isinstance(linear, Conv1D) else delta


@final
class PairHook:
    """Adds a pair's update to what its map gives."""

    def __init__(self, pair: LoraPair) -> None:
        self.pair = pair

    def __call__(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return self.pair(args[0], output)


@final
class LoraAdapter(AbstractAdapter):
    """LoRA on the target sites of one layer; exactly zero at initialisation."""

    def __init__(self, pairs: dict[str, LoraPair]) -> None:
        super().__init__()
        self.targets = tuple(pairs)
        for name, pair in pairs.items():
            self.add_module(name.replace(".", "_"), pair)

    def pair(self, target: str) -> LoraPair:
        """The factors at the site called `target`."""
        pair = self.get_submodule(target.replace(".", "_"))
        assert isinstance(pair, LoraPair)
        return pair

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        return [
            layer.get_submodule(target).register_forward_hook(PairHook(self.pair(target))) for target in self.targets
        ]

    def as_lora(self, target: str) -> LoraFactors:
        return self.pair(target).factors()

    @property
    def mergeable(self) -> tuple[str, ...]:
        return self.targets

    def fold(
        self, target: str, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return weight + self.pair(target).delta(linear), bias


def build_lora(placement: Placement) -> LoraAdapter:
    """Kaiming-uniform A (a = sqrt(5)), zero B, at every target of the layer.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    pairs: dict[str, LoraPair] = {}
    for site in placement.target_sites():
        pair = LoraPair(
            d_in=site.d_in,
            d_out=site.d_out,
            rank=placement.size("rank"),
            alpha=placement.real("alpha"),
            dropout=placement.real("dropout"),
        )
        nn.init.kaiming_uniform_(pair.a, a=math.sqrt(5), generator=placement.generator)
        pairs[site.name] = pair
    return LoraAdapter(pairs)
