"""Bottleneck adapters beside chosen linear maps, as LLM-Adapters places them."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.linear_series import linear_bottleneck_fields
from autopeft.spaces.methods.method import AbstractMethod, RateRange
from autopeft.spaces.methods.rules import size_of, target_sites
from autopeft.spaces.model_shape import ModelShape


@final
class LinearParallel(AbstractMethod):
    """Wx + scale * up(act(down(dropout(x)))) on each target, without biases."""

    name = "linear_parallel"
    source = "LLM-Adapters, Hu et al. 2023 (arXiv 2304.01933)"
    learning_rates = RateRange(low=1e-4, high=1e-3, source="LLM-Adapters 3e-4")
    fields = linear_bottleneck_fields("mlp")

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        bottleneck = size_of(self.name, "bottleneck", values)
        sites = target_sites(self.name, shape, layer=layer, values=values)
        return bottleneck * sum(site.d_in + site.d_out for site in sites)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "bottleneck", values)
        target_sites(self.name, shape, layer=layer, values=values)
