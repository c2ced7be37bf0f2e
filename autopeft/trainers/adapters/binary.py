"""Adapters in one, two or four bits a weight (Jie et al. 2023, arXiv 2307.16867): LoRA and the parallel bottleneck.

Each weight matrix is normalised by its own mean and standard deviation and rounded to 2^bits levels, those that halve
the normal distribution's mass around them; the gradient passes the rounding unchanged. The float32 masters are what
is trained and saved.
"""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Final, final

import torch
from torch import nn
from torch.nn.utils import parametrize

from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.lora import LoraAdapter, build_lora
from autopeft.trainers.adapters.parallel import ParallelAdapter, build_parallel

UP_STD: Final = 0.001
"""Of the second factor, truncated at twice that: all zero, it would have no spread to be normalised by."""
_EPSILON: Final = 1e-5
_ROUNDS: Final = 2000


@cache
def levels_of(bits: int) -> tuple[float, ...]:
    """The 2^bits levels, ascending: each the median of the standard normal in the cell between its neighbours' middles.

    For one bit plus and minus 0.6745. Found by repetition until nothing moves.
    """
    normal = NormalDist()
    levels = [normal.inv_cdf((index + 0.5) / 2**bits) for index in range(2**bits)]
    for _ in range(_ROUNDS):
        middles = [(low + high) / 2 for low, high in pairwise(levels)]
        mass = [0.0, *(normal.cdf(middle) for middle in middles), 1.0]
        levels = [normal.inv_cdf((low + high) / 2) for low, high in pairwise(mass)]
    return tuple(levels)


@final
class Rounded(nn.Module):
    """A weight at its levels, with its own mean and standard deviation; the gradient passes the rounding unchanged."""

    levels: torch.Tensor
    middles: torch.Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        levels = torch.tensor(levels_of(bits))
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("middles", (levels[1:] + levels[:-1]) / 2, persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        deviation, mean = torch.std_mean(weight)
        normal = (weight - mean) / (deviation + _EPSILON)
        rounded = self.levels[torch.bucketize(normal.detach(), self.middles)]
        return (rounded - normal.detach() + normal) * deviation + mean


def build_binary_lora(placement: Placement) -> LoraAdapter:
    """LoRA with both factors rounded; `scale` is the factor of the update at any rank.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    alpha = placement.real("scale") * placement.size("rank")
    adapter = build_lora(replace(placement, values={**placement.values, "alpha": alpha, "dropout": 0.0}))
    for target in adapter.targets:
        pair = adapter.pair(target)
        _draw_up(pair.b, placement)
        for name in ("a", "b"):
            parametrize.register_parametrization(pair, name, Rounded(placement.size("bits")))
    return adapter


def build_binary_adapter(placement: Placement) -> ParallelAdapter:
    """The parallel bottleneck with both weights rounded; its biases are not.

    Raises:
        ConfigurationError: The layer has no single feed-forward input and output, or the activation is unknown.
    """
    adapter = build_parallel(placement)
    _draw_up(adapter.bottleneck.up.weight, placement)
    for half in (adapter.bottleneck.down, adapter.bottleneck.up):
        parametrize.register_parametrization(half, "weight", Rounded(placement.size("bits")))
    return adapter


def _draw_up(weight: nn.Parameter | torch.Tensor, placement: Placement) -> None:
    nn.init.trunc_normal_(weight, std=UP_STD, a=-2 * UP_STD, b=2 * UP_STD, generator=placement.generator)
