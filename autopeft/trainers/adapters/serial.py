"""A bottleneck after the feed-forward block: z + SA(z) (Pfeiffer et al. 2020, arXiv 2005.00247)."""

from typing import Final, final

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.spaces.model_shape import Role
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement
from autopeft.trainers.adapters.bottleneck import Bottleneck, empty_bottleneck

INIT_STD: Final = 0.02


@final
class SerialAdapter(AbstractAdapter):
    """Acts on the output z of the feed-forward block's last linear map; near zero, not exactly, at initialisation."""

    def __init__(self, bottleneck: Bottleneck, *, down_site: str) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.down_site = down_site

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], z: torch.Tensor) -> torch.Tensor:
            return self.bottleneck(z, z)

        return [layer.get_submodule(self.down_site).register_forward_hook(hook)]


def build_serial(placement: Placement) -> SerialAdapter:
    """Weights N(0, 0.02), zero biases (BERT's initialisation, as in AutoPEFT).

    Raises:
        ConfigurationError: The layer has no single feed-forward output, or the activation is unknown.
    """
    site = placement.only_site(Role.MLP_DOWN)
    bottleneck = empty_bottleneck(placement, d_in=site.d_out, d_out=site.d_out)
    for weight in (bottleneck.down.weight, bottleneck.up.weight):
        nn.init.normal_(weight, std=INIT_STD, generator=placement.generator)
    return SerialAdapter(bottleneck, down_site=site.name)
