"""Noise on the adapted weights while training, larger where weights and gradients are (LoRA-GGPO).

Shapes: I and O the map's input and output width, R rank.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from autopeft.trainers.adapters.adapter import Handle
from autopeft.trainers.adapters.lora import LoraAdapter, LoraPair
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.model import LoadedModel
from autopeft.trainers.sites import Conv1D, LinearLike, layers_of


@dataclass(slots=True, kw_only=True)
class _Site:
    """One map with its factors."""

    linear: LinearLike
    pair: LoraPair
    base_O: torch.Tensor
    """Squared norm of each row of the frozen weight."""
    gradient_O: torch.Tensor
    """Squared norm of each row of the loss's gradient by the weight at the last step; 0 before it."""


@final
class WeightNoise:
    """For every `lora` target W: y += x E^T with E_ij ~ N(0, 1) (sigma |(W + dW)_i| + beta |dL/dW_i|^2) / sqrt(O).

    The row norm of W + dW is taken for sqrt(|W_i|^2 + |dW_i|^2), and dL/dW for s (B dA + dB A), with the last step's
    gradients; both come from the factors without a matrix of the weight's size. The noise itself is one, new in every
    step. Nothing is added outside `watch`.
    """

    def __init__(self, loaded: LoadedModel, adapters: AdapterSet, *, sigma: float, beta: float) -> None:
        self._sigma = sigma
        self._beta = beta
        layers = layers_of(loaded.model.base_model, loaded.shape)
        self._sites: list[_Site] = []
        for method, layer, adapter in adapters.adapters():
            if method == "lora" and isinstance(adapter, LoraAdapter):
                for target in adapter.targets:
                    linear = layers[layer].get_submodule(target)
                    assert isinstance(linear, LinearLike)
                    self._sites.append(_site(linear, adapter.pair(target)))

    def watch(self) -> list[Handle]:
        """Hooks that add the noise to the coming forward pass; none where both factors are 0."""
        return [
            site.linear.register_forward_hook(self._hook(site)) for site in self._sites if self._sigma or self._beta
        ]

    @torch.no_grad()
    def observe(self) -> None:
        """Take the factors' gradients in, after a backward pass and before they are cleared."""
        if not self._beta:
            return
        for site in self._sites:
            site.gradient_O = gradient_rows(site.pair)

    @torch.no_grad()
    def spread(self, site: _Site) -> torch.Tensor:
        """Standard deviation [O] of each row's noise."""
        norms_O = (site.base_O + update_rows(site.pair)).sqrt()
        return (self._sigma * norms_O + self._beta * site.gradient_O) / math.sqrt(len(norms_O))

    def _hook(self, site: _Site) -> "_Noise":
        return _Noise(self.spread(site))


@final
class _Noise:
    """A forward hook that adds x E^T for one E."""

    def __init__(self, spread_O: torch.Tensor) -> None:
        self._spread_O = spread_O

    def __call__(self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = args[0]
        noise_OI = torch.randn(len(self._spread_O), x.shape[-1], device=x.device, dtype=x.dtype)
        return output + (nn.functional.linear(x, noise_OI) * self._spread_O.to(x.dtype)).to(output.dtype)


def _site(linear: LinearLike, pair: LoraPair) -> _Site:
    with torch.no_grad():
        weight = linear.weight.float()
        base_O = weight.square().sum(0 if isinstance(linear, Conv1D) else 1)
    return _Site(linear=linear, pair=pair, base_O=base_O, gradient_O=torch.zeros_like(base_O))


def update_rows(pair: LoraPair) -> torch.Tensor:
    """Squared norm [O] of each row of s B A."""
    gram_RR = pair.a @ pair.a.t()
    return pair.scale**2 * ((pair.b @ gram_RR) * pair.b).sum(1)


def gradient_rows(pair: LoraPair) -> torch.Tensor:
    """Squared norm [O] of each row of s (B dA + dB A); a factor without gradient counts as zero."""
    change_a = torch.zeros_like(pair.a) if pair.a.grad is None else pair.a.grad
    change_b = torch.zeros_like(pair.b) if pair.b.grad is None else pair.b.grad
    left = torch.cat([pair.b, change_b], dim=1)  # [O, 2 R]
    right = torch.cat([change_a, pair.a])  # [2 R, I]
    return pair.scale**2 * ((left @ (right @ right.t())) * left).sum(1).clamp_min(0.0)
