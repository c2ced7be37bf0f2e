"""The low-rank part of decomposed prompt tuning: a change of the input embeddings by position."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.inputs import check_input, embedding_width
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import positive, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class Dept(AbstractMethod):
    """E + s (A B)[:n] at the n positions of a sequence, s = alpha / sqrt(rank); with `prompt_tuning` it is DePT."""

    name = "dept"
    source = "Shi and Lipani 2023 (arXiv 2309.05173)"
    learning_rates = RateRange(low=1e-4, high=1e-2, source="DePT (arXiv 2309.05173): 5e-4 and 5e-3 for the pair")
    at_input = True
    suppressible = False
    fields = (
        Field(name="rank", kind=FieldKind.SIZE, default=None, low=0, help="columns of A, rows of B"),
        Field(
            name="positions",
            kind=FieldKind.INTEGER,
            default=256,
            low=1,
            high=1_000_000,
            help="rows of A; tokens beyond them are left as they are",
        ),
        Field(name="alpha", kind=FieldKind.REAL, default=1.0, low=1e-6, high=1e6, help="scale is alpha / sqrt(rank)"),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        rank = size_of(self.name, "rank", values)
        return rank * (positive(self.name, "positions", values) + embedding_width(shape))

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_input(self.name, shape, layer=layer)
