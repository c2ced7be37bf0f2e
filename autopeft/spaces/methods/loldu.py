"""Training the diagonal of an LDU decomposition of chosen linear maps, between frozen triangular factors."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.framed import RANK, SCALE, TARGETS, factor_parameters
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.rules import check_rank, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class Loldu(AbstractMethod):
    """W = P L diag(z) U: y += (P L)_r diag(s z - s0 z0) U_r x, with the vector z and the number s trained."""

    name = "loldu"
    source = "LoLDU, Shi et al. 2024 (arXiv 2410.13618)"
    fields = (RANK, TARGETS, SCALE)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        return factor_parameters(self.name, shape, layer=layer, values=values, core=rank + 1, factors=False)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)
