"""A rotation of each map's inputs that all layers share, and few trained numbers between it and the map's own frame."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.bridged import ENABLED, TARGETS, dropout, real
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.rules import size_of, target_sites
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.peft_counts import SITE_COUNTS


@final
class Frod(AbstractMethod):
    """W = U diag(z) V^T: y += U (S + diag(c)) V^T x, V of all layers' maps of a name, S with few trained entries."""

    name = "frod"
    source = "Hugging Face PEFT, FRoD (doi 10.1609/aaai.v40i31.39813)"
    fields = (
        ENABLED,
        TARGETS,
        real("rate", 0.01, high=0.5, text="share of the entries of S that are trained, off its diagonal"),
        real("ridge", 1e-3, low=1e-9, high=1e3, text="added to each layer's Gram matrix as V is found"),
        dropout("of the update's input"),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        config = {"sparse_rate": values["rate"]}
        sites = target_sites(self.name, shape, layer=layer, values=values)
        return sum(SITE_COUNTS["FROD"](config, site) for site in sites)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "enabled", values)
        target_sites(self.name, shape, layer=layer, values=values)
