"""Groups of low-rank updates that are kept orthogonal to the weights and to each other."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import check_rank, positive, size_of, target_sites
from autopeft.spaces.model_shape import ModelShape


@final
class LoraGroup(AbstractMethod):
    """y += scale * sum over the group of B_i A_i dropout(x), with a penalty on what W and the B_i A_i share."""

    name = "lora_group"
    source = "PEGO, Hu et al. 2024 (arXiv 2407.15085)"
    learning_rates = RateRange(low=1e-4, high=1e-3, source="PEGO 5e-4")
    fields = (
        Field(name="rank", kind=FieldKind.SIZE, default=None, low=0, help="of each member"),
        Field(name="group", kind=FieldKind.INTEGER, default=2, low=1, high=64, help="members on each target"),
        Field(name="targets", kind=FieldKind.TARGETS, default=("query-value",), help="linear maps of the layer"),
        Field(name="scale", kind=FieldKind.REAL, default=1.0, low=1e-6, high=1e3, help="factor of every member"),
        Field(name="dropout", kind=FieldKind.REAL, default=0.0, low=0.0, high=0.99, help="of the members' input"),
        Field(
            name="orthogonality", kind=FieldKind.REAL, default=0.001, low=0.0, high=10.0, help="weight of the penalty"
        ),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values) * positive(self.name, "group", values)
        sites = target_sites(self.name, shape, layer=layer, values=values)
        return rank * sum(site.d_in + site.d_out for site in sites)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        positive(self.name, "group", values)
        check_rank(self.name, shape, layer=layer, values=values)
