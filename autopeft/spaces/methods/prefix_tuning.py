"""Trainable key and value rows before the sequence, in every attention."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import check_open_attention, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class PrefixTuning(AbstractMethod):
    """`length` flat key rows and value rows, prepended after position encoding and always visible."""

    name = "prefix_tuning"
    source = "Li and Liang 2021 (arXiv 2101.00190), without the reparameterisation"
    learning_rates = RateRange(
        low=1e-2, high=0.3, source="LLM-Adapters 3e-2; the grid of the SpIEL paper's baseline, 1e-2 to 0.3"
    )
    fields = (Field(name="length", kind=FieldKind.SIZE, default=None, low=0, help="key and value rows a layer"),)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return 2 * size_of(self.name, "length", values) * shape.kv_size

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "length", values)
        check_open_attention(self.name, shape, layer=layer)
