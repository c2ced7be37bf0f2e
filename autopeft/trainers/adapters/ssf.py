"""Scale and shift of linear maps' outputs (Lian et al. 2022, arXiv 2210.08823): y' = scale * y + shift.

Shapes: O output width.
"""

from typing import final

import torch
from torch import nn

from autopeft.errors import ConfigurationError
from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates
from autopeft.trainers.sites import Conv1D, LinearLike


@final
class ScaleShift(AbstractSiteUpdate):
    """One number to multiply and one to add for each output."""

    def __init__(self, *, d_out: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d_out))
        self.shift = nn.Parameter(torch.zeros(d_out))

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift.to(output.dtype), output, self.scale.to(output.dtype))

    @torch.no_grad()
    def fold(
        self, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if bias is None:
            raise ConfigurationError(
                "ssf: this map has no bias that could take the shift", hint="keep the adapters attached"
            )
        scale, shift = self.scale.float(), self.shift.float()
        weight = weight * scale if isinstance(linear, Conv1D) else weight * scale[:, None]
        return weight, bias * scale + shift


def build_ssf(placement: Placement) -> SiteUpdates:
    """Scales of one and shifts of zero, so that nothing changes at the start.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    return SiteUpdates({site.name: ScaleShift(d_out=site.d_out) for site in placement.target_sites()})
