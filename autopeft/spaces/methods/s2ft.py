"""Training whole rows or columns of chosen linear maps, nothing else of them."""

from collections.abc import Mapping
from typing import final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import size_of, target_sites
from autopeft.spaces.model_shape import ModelShape, Role, Site

COLUMN_ROLES = frozenset({Role.ATTENTION_OUTPUT, Role.MLP_DOWN})
"""Maps whose inputs are the channels; of every other map the outputs are."""
SELECTIONS = ("random", "largest", "smallest")


def channels_of(site: Site) -> int:
    """How many channels (attention or feed-forward) the map reads or gives."""
    return site.d_in if site.role in COLUMN_ROLES else site.d_out


@final
class S2ft(AbstractMethod):
    """W[:, c] += S for the maps out of attention and feed-forward blocks, W[c, :] += S for those into them; S = 0."""

    name = "s2ft"
    source = "S2FT, Yang et al. 2024 (arXiv 2412.06289), by index instead of permutation"
    learning_rates = RateRange(low=1e-4, high=2e-3, source="S2FT 2e-4 (commonsense) and 1e-3 (arithmetic)")
    fields = (
        Field(name="channels", kind=FieldKind.SIZE, default=None, low=0, help="trained channels of each target"),
        Field(
            name="targets",
            kind=FieldKind.TARGETS,
            default=("attention_output", "mlp_down"),
            help="linear maps of the layer",
        ),
        Field(
            name="selection",
            kind=FieldKind.CATEGORY,
            default="random",
            choices=SELECTIONS,
            help="which channels: drawn, or those whose weights have the largest or smallest norm",
        ),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        channels = size_of(self.name, "channels", values)
        sites = target_sites(self.name, shape, layer=layer, values=values)
        return channels * sum(site.d_in + site.d_out - channels_of(site) for site in sites)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        channels = size_of(self.name, "channels", values)
        for site in target_sites(self.name, shape, layer=layer, values=values):
            if channels > channels_of(site):
                raise ConfigurationError(
                    f"s2ft.channels: {channels} is above the {channels_of(site)} channels of {site.name} in"
                    f" layer {layer}",
                    hint=f"use up to {channels_of(site)}, or leave {site.name} out of the targets",
                )
