"""Routed LoRA experts on chosen linear maps."""

from collections.abc import Mapping
from typing import final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import check_rank, positive, size_of, target_sites
from autopeft.spaces.model_shape import ModelShape


@final
class Mola(AbstractMethod):
    """y += (alpha / rank) * sum over the token's top_k experts e of w_e B_e A_e dropout(x), w from the map's router."""

    name = "mola"
    coupled = True
    source = "Gao et al. 2024 (arXiv 2402.08562)"
    learning_rates = RateRange(low=1e-4, high=1e-3, source="MoLA 3e-4")
    fields = (
        Field(name="experts", kind=FieldKind.SIZE, default=None, low=0, help="LoRA experts on each target"),
        Field(name="rank", kind=FieldKind.INTEGER, default=8, low=1, high=65536, help="of every expert"),
        Field(name="targets", kind=FieldKind.TARGETS, default=("query-value",), help="linear maps of the layer"),
        Field(name="alpha", kind=FieldKind.REAL, default=16.0, low=1e-6, high=1e6, help="scale is alpha / rank"),
        Field(name="dropout", kind=FieldKind.REAL, default=0.0, low=0.0, high=0.99, help="of the experts' input"),
        Field(name="top_k", kind=FieldKind.INTEGER, default=2, low=1, high=65536, help="experts a token goes through"),
        Field(
            name="balance", kind=FieldKind.REAL, default=0.001, low=0.0, high=10.0, help="weight of the balance loss"
        ),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        experts = size_of(self.name, "experts", values)
        rank = positive(self.name, "rank", values)
        sites = target_sites(self.name, shape, layer=layer, values=values)
        return experts * sum(rank * (site.d_in + site.d_out) + site.d_in for site in sites)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        experts = size_of(self.name, "experts", values)
        top_k = positive(self.name, "top_k", values)
        if top_k > experts:
            raise ConfigurationError(
                f"mola.top_k: {top_k} of {experts} experts in layer {layer}",
                hint=f"use a top_k of at most {experts}, or {top_k} experts or more (0: none in that layer)",
            )
        check_rank(self.name, shape, layer=layer, values=values)
