"""Decomposed prompt tuning: a short prompt, and a low-rank change of the tokens' embeddings by position."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue, MethodSetting
from autopeft.spaces.methods.inputs import INIT, check_input, embedding_width
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import positive, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class Dept(AbstractMethod):
    """[P; E + s (A B)[:n]]: `length` virtual tokens P, and a low-rank change of all else, s = alpha / sqrt(rank)."""

    name = "dept"
    source = "Shi and Lipani 2023 (arXiv 2309.05173)"
    learning_rates = RateRange(low=1e-4, high=1e-2, source="DePT (arXiv 2309.05173): 5e-4 and 5e-3 for the pair")
    at_input = True
    shares_base = False
    suppressible = False
    fields = (
        Field(name="rank", kind=FieldKind.SIZE, default=None, low=0, help="columns of A, rows of B"),
        Field(name="length", kind=FieldKind.INTEGER, default=40, low=1, high=1_000_000, help="virtual tokens"),
        INIT,
        Field(
            name="positions",
            kind=FieldKind.INTEGER,
            default=256,
            low=1,
            high=1_000_000,
            help="rows of A; tokens beyond them are left as they are",
        ),
        Field(name="alpha", kind=FieldKind.REAL, default=1.0, low=1e-6, high=1e6, help="scale is alpha / sqrt(rank)"),
        Field(
            name="prompt_ratio",
            kind=FieldKind.REAL,
            default=1.0,
            low=1e-3,
            high=1e6,
            help="learning rate of the virtual tokens over that of A and B; 0.3 / 5e-4 = 600 in the paper",
        ),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank, length = size_of(self.name, "rank", values), positive(self.name, "length", values)
        width = embedding_width(shape)
        return length * width + rank * (positive(self.name, "positions", values) + width)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_input(self.name, shape, layer=layer)

    def virtual_tokens(self, setting: MethodSetting) -> int:
        return positive(self.name, "length", setting.at(0) or {})
