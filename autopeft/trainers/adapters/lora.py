"""Low-rank updates beside frozen linear maps (Hu et al. 2021, arXiv 2106.09685).

Shapes: I and O the map's input and output width, R rank.
"""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.kernels.dispatch import takes
from autopeft.kernels.low_rank import BRANCH, expand_add, lora_linear, shrink
from autopeft.kernels.slots import Slots
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, LoraFactors, Placement
from autopeft.trainers.adapters.own_forward import OwnForward
from autopeft.trainers.adapters.passes import OfPass
from autopeft.trainers.sites import Conv1D, LinearLike


@final
class LoraPair(OfPass):
    """The two factors at one site: y += (alpha / R) * B A dropout(x)."""

    def __init__(self, *, d_in: int, d_out: int, rank: int, alpha: float, dropout: float, stream: int = 0) -> None:
        super().__init__(stream=stream)
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
        if self.fits_kernels(x):
            ys = output.flatten(0, -2).clone()  # in place on a view of it would cost two copies of its gradient
            (hidden,) = shrink(x.flatten(0, -2), self.a[None, None], self._slots(x), stream=self.stream)
            return expand_add(ys, hidden.to(ys.dtype), self.b[None], self._slots(x)).view(output.shape)
        dropped = functional.dropout(x, self.dropout, training=self.training) if self.dropout else x
        hidden = functional.linear(dropped, self.a.to(x.dtype)).flatten(0, -2).to(output.dtype)
        b = self.b.to(output.dtype).t()
        return torch.addmm(output.flatten(0, -2), hidden, b, alpha=self.scale).view(output.shape)

    def beside(self, linear: LinearLike, x: torch.Tensor) -> torch.Tensor:
        """What the frozen `linear` gives for `x` [..., I] plus the update, in one operation of the kernels."""
        bank = self.a[None, None]
        (y,) = lora_linear(
            x.flatten(0, -2), [rows_of(linear)], [linear.bias], bank, [self.b[None]], self._slots(x), stream=self.stream
        )
        return y.view(*x.shape[:-1], -1)

    def fits_kernels(self, x: torch.Tensor) -> bool:
        """Whether kernels compute the update for `x` [..., I].

        Not where A is frozen and B is not (`lora_fa`): they would keep `x`, which nothing else needs then.
        """
        return x.dim() > 1 and self.a.requires_grad >= self.b.requires_grad and takes(BRANCH, x, rank=len(self.a))

    @property
    def drops(self) -> float:
        """The probability that an input is dropped now."""
        return self.dropout if self.training else 0.0

    def _slots(self, x: torch.Tensor) -> Slots:
        return self.passing.slots(x, scale=self.scale, dropout=self.drops)

    @torch.no_grad()
    def factors(self) -> LoraFactors:
        """The pair as it computes now, rounded where its factors are."""
        return LoraFactors(a=self.a.detach(), b=self.b.detach(), alpha=self.alpha, dropout=self.dropout)

    @torch.no_grad()
    def delta(self, linear: LinearLike) -> torch.Tensor:
        """The update as a matrix, [O, I] or in the transposed layout of `linear.weight`, fp32."""
        delta = self.scale * (self.b.float() @ self.a.float())
        return delta.t() if isinstance(linear, Conv1D) else delta


def rows_of(linear: LinearLike) -> torch.Tensor:
    """The weight of `linear` as [O, I]."""
    return linear.weight.t() if isinstance(linear, Conv1D) else linear.weight


def is_frozen(linear: LinearLike) -> bool:
    """Whether neither weight nor bias has a gradient."""
    return not linear.weight.requires_grad and (linear.bias is None or not linear.bias.requires_grad)


@final
class PairHook:
    """Adds a pair's update to what its map gives, or, where kernels take it, computes both in the map's place."""

    def __init__(self, pair: LoraPair, linear: LinearLike) -> None:
        self.pair = pair
        self._linear = linear
        self._summed = False
        """The map's output has the update in it."""

    def __call__(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if self._summed:
            self._summed = False
            return output
        return self.pair(args[0], output)

    def attached(self) -> list[Handle]:
        """Handles of it on its map."""
        return [self._linear.register_forward_hook(self), OwnForward(self._linear, self._sum)]

    def _sum(self, x: torch.Tensor) -> torch.Tensor | None:
        """Map and update of `x`; None where a hook stands between the two, or no kernel takes them."""
        first = next(iter(self._linear._forward_hooks.values()), None)
        self._summed = first is self and is_frozen(self._linear) and self.pair.fits_kernels(x)
        return self.pair.beside(self._linear, x) if self._summed else None


def hook_in(pairs: Mapping[str, LoraPair], layer: nn.Module) -> list[Handle]:
    """Make `pairs` act on the maps of `layer` that they are called by."""
    handles: list[Handle] = []
    for target, pair in pairs.items():
        linear = layer.get_submodule(target)
        assert isinstance(linear, LinearLike)
        handles += PairHook(pair, linear).attached()
    return handles


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
        return hook_in({target: self.pair(target) for target in self.targets}, layer)

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
            stream=placement.stream(site),
        )
        nn.init.kaiming_uniform_(pair.a, a=math.sqrt(5), generator=placement.generator)
        pairs[site.name] = pair
    return LoraAdapter(pairs)
