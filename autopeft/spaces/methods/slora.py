"""Low-rank updates with a trained matrix between the two factors."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.framed import ALPHA, RANK, SVD_RATES, TARGETS, factor_parameters
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.rules import check_rank, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class Slora(AbstractMethod):
    """y += (alpha / rank) * B N A x, N of rank by rank; B starts at zero."""

    name = "slora"
    source = "SLoRA (structured LoRA) in NLoRA, Guo et al. 2025 (arXiv 2502.14482)"
    learning_rates = SVD_RATES
    fields = (RANK, TARGETS, ALPHA)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        return factor_parameters(self.name, shape, layer=layer, values=values, core=rank**2, factors=True)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)
