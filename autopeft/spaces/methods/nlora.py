"""Low-rank updates of three factors that start as columns, corner and rows of the map itself."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.framed import RANK, SCALE, SVD_RATES, TARGETS, factor_parameters
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.rules import check_rank, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class Nlora(AbstractMethod):
    """y += scale * (B N A - B0 N0 A0) x, started from B0 = W[:, :r], N0 = W[:r, :r], A0 = W[:r, :]."""

    name = "nlora"
    source = "NLoRA, Guo et al. 2025 (arXiv 2502.14482), with the start subtracted"
    learning_rates = SVD_RATES
    fields = (RANK, TARGETS, SCALE)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        return factor_parameters(self.name, shape, layer=layer, values=values, core=rank**2, factors=True)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)
