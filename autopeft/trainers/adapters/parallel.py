"""A bottleneck beside the feed-forward block: FFN(x) + scale * PA(x) (He et al. 2022, arXiv 2110.04366)."""

from typing import final

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.spaces.model_shape import Role
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement
from autopeft.trainers.adapters.bottleneck import Bottleneck, empty_bottleneck


@final
class ParallelAdapter(AbstractAdapter):
    """Reads the feed-forward block's input x, adds to its output; exactly zero at initialisation."""

    def __init__(self, bottleneck: Bottleneck, *, up_site: str, down_site: str) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.up_site = up_site
        self.down_site = down_site

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        inputs: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            inputs[:] = args[:1]

        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return self.bottleneck(inputs.pop(), output)

        return [
            layer.get_submodule(self.up_site).register_forward_pre_hook(keep, prepend=True),
            layer.get_submodule(self.down_site).register_forward_hook(hook),
        ]


def build_parallel(placement: Placement) -> ParallelAdapter:
    """Kaiming-uniform down (a = sqrt(5)), zero up, zero biases (MAM adapter).

    Raises:
        ConfigurationError: The layer has no single feed-forward input and output, or the activation is unknown.
    """
    up, down = placement.only_site(Role.MLP_UP), placement.only_site(Role.MLP_DOWN)
    bottleneck = empty_bottleneck(placement, d_in=up.d_in, d_out=down.d_out)
    nn.init.kaiming_uniform_(bottleneck.down.weight, a=5**0.5, generator=placement.generator)
    nn.init.zeros_(bottleneck.up.weight)
    return ParallelAdapter(bottleneck, up_site=up.name, down_site=down.name)
