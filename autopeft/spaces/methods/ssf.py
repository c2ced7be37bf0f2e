"""Scaling and shifting what chosen linear maps give."""

from collections.abc import Mapping
from typing import final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import size_of, target_sites
from autopeft.spaces.model_shape import ModelShape


@final
class Ssf(AbstractMethod):
    """y' = scale * y + shift, elementwise, on each target's output; scale starts at one, shift at zero."""

    name = "ssf"
    source = "SSF, Lian et al. 2022 (arXiv 2210.08823), on linear maps"
    learning_rates = RateRange(low=1e-3, high=5e-2, source="SSF on VTAB-1k: 5e-3 most often, 1e-3 to 5e-2")
    fields = (
        Field(name="enabled", kind=FieldKind.SIZE, default=None, low=0, high=1, help="1 where it is present"),
        Field(name="targets", kind=FieldKind.TARGETS, default=("all-linear",), help="linear maps of the layer"),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        size_of(self.name, "enabled", values)
        return sum(2 * site.d_out for site in target_sites(self.name, shape, layer=layer, values=values))

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        enabled = size_of(self.name, "enabled", values)
        if enabled != 1:
            raise ConfigurationError(f"ssf.enabled: {enabled} is neither 0 nor 1", hint="write 1; it has no size")
        target_sites(self.name, shape, layer=layer, values=values)
