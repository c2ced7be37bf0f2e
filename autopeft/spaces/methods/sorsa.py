"""Training the top singular triples of chosen linear maps, their vectors kept near orthonormal by a penalty."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.framed import RANK, SCALE, SVD_RATES, TARGETS, factor_parameters
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind
from autopeft.spaces.methods.rules import check_rank, size_of
from autopeft.spaces.model_shape import ModelShape

ORTHONORMALITY = Field(
    name="orthonormality",
    kind=FieldKind.REAL,
    default=0.1,
    low=0.0,
    high=1e4,
    help="weight in the loss of the mean distance of the singular vectors from orthonormal ones",
)


@final
class Sorsa(AbstractMethod):
    """y += scale * (B diag(s) A - B0 diag(s0) A0) x, started from the top singular triples of W; all three train."""

    name = "sorsa"
    source = "SORSA, Cao 2024 (arXiv 2409.00055)"
    learning_rates = SVD_RATES
    fields = (RANK, TARGETS, SCALE, ORTHONORMALITY)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        return factor_parameters(self.name, shape, layer=layer, values=values, core=rank, factors=True)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)
