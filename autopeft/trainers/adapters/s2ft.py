"""Structured sparse fine-tuning (Yang et al. 2024, arXiv 2412.06289): whole rows or columns of W train.

The original permutes coupled maps so that the trained channels lie side by side; here they are indexed, which leaves
the base model as it is. Maps of one layer with equally many channels train the same ones when they are drawn, so
what feeds a channel and what reads it change together.

Shapes: I and O the map's input and output width, C trained channels.
"""

from typing import Final, final

import torch
from torch import nn
from torch.nn import functional

from autopeft.spaces.methods.s2ft import COLUMN_ROLES, channels_of
from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.frames import matrix_of
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates, in_layout
from autopeft.trainers.sites import LinearLike

_UNKNOWN: Final = -1


@final
class Slice(AbstractSiteUpdate):
    """The change of C rows [C, I] or columns [O, C] of one weight."""

    channels: torch.Tensor

    def __init__(self, *, d_in: int, d_out: int, columns: bool, channels: torch.Tensor, largest: bool | None) -> None:
        super().__init__()
        n = len(channels)
        self.d_out = d_out
        self.d_in = d_in
        self.columns = columns
        self.largest = largest
        self.change = nn.Parameter(torch.zeros((d_out, n) if columns else (n, d_in)))
        self.register_buffer("channels", channels)

    @torch.no_grad()
    def derive(self, linear: LinearLike) -> None:
        """Choose the channels by the norms of their weights, once; ties go to the lower number."""
        if self.largest is None or bool((self.channels >= 0).all()):
            return
        norms = matrix_of(linear).to(device="cpu", dtype=torch.float64).norm(dim=0 if self.columns else 1)
        order = norms.argsort(descending=self.largest, stable=True)
        self.channels.copy_(order[: len(self.channels)].sort().values)

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` [..., O] plus the slice's part for `x` [..., I]; only the slice's inputs are kept for backward."""
        flat = output.flatten(0, -2)
        if self.columns:
            picked = x.flatten(0, -2).index_select(1, self.channels).to(output.dtype)
            return torch.addmm(flat, picked, self.change.to(output.dtype).t()).view(output.shape)
        added = functional.linear(x, self.change.to(x.dtype)).flatten(0, -2).to(output.dtype)
        return flat.index_add(1, self.channels, added).view(output.shape)

    @torch.no_grad()
    def fold(
        self, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        delta = torch.zeros(self.d_out, self.d_in, device=weight.device)
        delta.index_add_(1 if self.columns else 0, self.channels, self.change.float())
        return weight + in_layout(linear, delta), bias


def build_s2ft(placement: Placement) -> SiteUpdates:
    """Changes of zero at channels drawn now, or chosen by weight when the adapter is first attached.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    n, selection = placement.size("channels"), placement.values["selection"]
    drawn: dict[int, torch.Tensor] = {}
    slices: dict[str, Slice] = {}
    for site in placement.target_sites():
        width = channels_of(site)
        if selection == "random" and width not in drawn:
            drawn[width] = torch.randperm(width, generator=placement.generator)[:n].sort().values
        channels = drawn[width] if selection == "random" else torch.full((n,), _UNKNOWN)
        slices[site.name] = Slice(
            d_in=site.d_in,
            d_out=site.d_out,
            columns=site.role in COLUMN_ROLES,
            channels=channels.clone(),
            largest=None if selection == "random" else selection == "largest",
        )
    return SiteUpdates(slices)
