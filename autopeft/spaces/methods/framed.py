"""What the methods share that train a small core between two frames of each target: fields and counts."""

from collections.abc import Mapping
from typing import Final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import size_of, target_sites
from autopeft.spaces.model_shape import ModelShape

RANK: Final = Field(name="rank", kind=FieldKind.SIZE, default=None, low=0, help="width of the core")
TARGETS: Final = Field(
    name="targets", kind=FieldKind.TARGETS, default=("query-value",), help="linear maps of the layer"
)
ALPHA: Final = Field(
    name="alpha", kind=FieldKind.REAL, default=16.0, low=1e-6, high=1e6, help="the update is scaled by alpha / rank"
)
SCALE: Final = Field(
    name="scale", kind=FieldKind.REAL, default=1.0, low=1e-6, high=1e6, help="factor of the update, at any rank"
)
SVD_RATES: Final = RateRange(
    low=1e-5, high=2e-4, source="SORSA 3e-5, starts from the singular values 2e-5 to 5e-5 (7B models, rank 128)"
)
"""For cores and factors that start at the size of the weight's own."""


def factor_parameters(
    method: str, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue], core: int, factors: bool
) -> int:
    """`core` numbers a target, and rank (d_in + d_out) more where both factors are trained."""
    rank = size_of(method, "rank", values)
    sites = target_sites(method, shape, layer=layer, values=values)
    return sum(core + (rank * (site.d_in + site.d_out) if factors else 0) for site in sites)
