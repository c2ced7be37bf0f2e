"""Low-rank updates of chosen linear maps."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import check_rank, size_of, target_sites
from autopeft.spaces.model_shape import ModelShape


@final
class Lora(AbstractMethod):
    """y += (alpha / rank) * B A dropout(x) on each target; B starts at zero."""

    name = "lora"
    source = "Hu et al. 2021 (arXiv 2106.09685)"
    learning_rates = RateRange(low=1e-4, high=2.2e-3, source="most papers 1e-4 to 5e-4; IncreLoRA on GLUE up to 2.2e-3")
    fields = (
        Field(name="rank", kind=FieldKind.SIZE, default=None, low=0, help="rows of A, columns of B"),
        Field(name="targets", kind=FieldKind.TARGETS, default=("query-value",), help="linear maps of the layer"),
        Field(name="alpha", kind=FieldKind.REAL, default=16.0, low=1e-6, high=1e6, help="scale is alpha / rank"),
        Field(name="dropout", kind=FieldKind.REAL, default=0.0, low=0.0, high=0.99, help="of the input of A"),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        sites = target_sites(self.name, shape, layer=layer, values=values)
        return rank * sum(site.d_in + site.d_out for site in sites)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)
