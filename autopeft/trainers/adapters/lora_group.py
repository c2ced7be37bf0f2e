"""Groups of LoRAs with PEGO's orthogonality penalty (Hu et al. 2024, arXiv 2407.15085).

A sum of N updates of rank R is one update of rank N R, so a group is a LoRA pair whose rows and columns come in N
blocks: it runs, merges and saves as one.

Shapes: I and O the map's input and output width, N members, R rank, P pairs of members.
"""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, LoraFactors, Placement
from autopeft.trainers.adapters.lora import LoraPair, hook_in
from autopeft.trainers.sites import Conv1D, LinearLike


@final
class LoraGroupAdapter(AbstractAdapter):
    """N LoRAs on each target site of one layer; exactly zero at initialisation."""

    def __init__(self, pairs: Mapping[str, LoraPair], *, members: int, orthogonality: float) -> None:
        super().__init__()
        self.targets = tuple(pairs)
        self.members = members
        self.orthogonality = orthogonality
        self._linears: dict[str, LinearLike] = {}
        for name, pair in pairs.items():
            self.add_module(name.replace(".", "_"), pair)

    def pair(self, target: str) -> LoraPair:
        """The stacked factors at the site called `target`."""
        pair = self.get_submodule(target.replace(".", "_"))
        assert isinstance(pair, LoraPair)
        return pair

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        handles: list[Handle] = [_Forget(self._linears)]
        for target in self.targets:
            linear = layer.get_submodule(target)
            assert isinstance(linear, LinearLike)
            self._linears[target] = linear
        return handles + hook_in({target: self.pair(target) for target in self.targets}, layer)

    def as_lora(self, target: str) -> LoraFactors:
        """One LoRA of the sum of the members' ranks."""
        return self.pair(target).factors()

    @property
    def mergeable(self) -> tuple[str, ...]:
        return self.targets

    def fold(
        self, target: str, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return weight + self.pair(target).delta(linear), bias

    def penalty(self) -> torch.Tensor | None:
        """`orthogonality * sum over targets of sum_i |W (B_i A_i)^T| + sum_{i<j} |B_i A_i (B_j A_j)^T|`, entrywise.

        None when it is off or the adapter is not attached. The first term keeps every member's row space
        apart from the pretrained weights', the second the members' apart from each other's; `scale` is not in it.
        """
        if not self.orthogonality or not self._linears:
            return None
        terms = [self._overlap(self.pair(target), linear) for target, linear in self._linears.items()]
        return self.orthogonality * torch.stack(terms).sum()

    def _overlap(self, pair: LoraPair, linear: LinearLike) -> torch.Tensor:
        weight = linear.weight.t() if isinstance(linear, Conv1D) else linear.weight  # [O, I]
        a = pair.a.unflatten(0, (self.members, -1)).float()  # [N, R, I]
        b = pair.b.unflatten(1, (self.members, -1)).float().transpose(0, 1)  # [N, O, R]
        through = (weight.float() @ a.flatten(0, 1).t()).unflatten(1, (self.members, -1)).transpose(0, 1)  # [N, O, R]
        kept = (through @ b.transpose(1, 2)).abs().sum()
        first, second = torch.triu_indices(self.members, self.members, offset=1, device=a.device)  # [P]
        gram = a[first] @ a[second].transpose(1, 2)  # [P, R, R]
        return kept + (b[first] @ gram @ b[second].transpose(1, 2)).abs().sum()


@final
class _Forget:
    """Lets go of the base model's maps."""

    def __init__(self, linears: dict[str, LinearLike]) -> None:
        self.linears = linears

    def remove(self) -> None:
        self.linears.clear()


def build_lora_group(placement: Placement) -> LoraGroupAdapter:
    """Kaiming-uniform A (a = sqrt(5)) and zero B for every member, at every target of the layer.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    members, rank = placement.size("group"), placement.size("rank")
    pairs: dict[str, LoraPair] = {}
    for site in placement.target_sites():
        pair = LoraPair(
            d_in=site.d_in,
            d_out=site.d_out,
            rank=members * rank,
            alpha=placement.real("scale") * members * rank,
            dropout=placement.real("dropout"),
            stream=placement.stream(site, kind=1),
        )
        nn.init.kaiming_uniform_(pair.a, a=math.sqrt(5), generator=placement.generator)
        pairs[site.name] = pair
    return LoraGroupAdapter(pairs, members=members, orthogonality=placement.real("orthogonality"))
