"""Training the largest singular values of chosen linear maps, between frozen singular vectors."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.framed import RANK, TARGETS, factor_parameters
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.rules import check_rank, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class Svfit(AbstractMethod):
    """W = U diag(s) V^T: y += U_r diag(core) V_r^T x, where the core is the change of the top singular values."""

    name = "svfit"
    source = "SVFit, Sun et al. 2024 (arXiv 2409.05926)"
    fields = (RANK, TARGETS)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        return factor_parameters(self.name, shape, layer=layer, values=values, core=rank, factors=False)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)
