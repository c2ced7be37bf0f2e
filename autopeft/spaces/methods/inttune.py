"""Training the matrix between frozen columns and rows of chosen linear maps."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.framed import RANK, SCALE, SVD_RATES, TARGETS, factor_parameters
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.rules import check_rank, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class IntTune(AbstractMethod):
    """y += scale * W[:, :r] core W[:r, :] x, where the core is the change of an r by r matrix."""

    name = "inttune"
    source = "IntTune in NLoRA, Guo et al. 2025 (arXiv 2502.14482)"
    learning_rates = SVD_RATES
    fields = (RANK, TARGETS, SCALE)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        return factor_parameters(self.name, shape, layer=layer, values=values, core=rank**2, factors=False)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)
