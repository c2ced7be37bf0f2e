"""Trained key and value rows before the sequence, the first of which stay as they are drawn."""

from collections.abc import Mapping
from typing import final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind
from autopeft.spaces.methods.rules import check_open_attention, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class Cartridge(AbstractMethod):
    """`length` key rows and value rows, N(0, 1), of which the first `frozen` are not trained: a sink for attention."""

    name = "cartridge"
    coupled = True
    source = "Eyuboglu et al. 2025 (arXiv 2506.06266), as Hugging Face PEFT's CARTRIDGE from random rows"
    fields = (
        Field(name="length", kind=FieldKind.SIZE, default=None, low=0, help="key and value rows a layer"),
        Field(name="frozen", kind=FieldKind.INTEGER, default=1, low=0, high=65536, help="rows that are not trained"),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return 2 * (size_of(self.name, "length", values) - _frozen(values)) * shape.kv_size

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        length = size_of(self.name, "length", values)
        if _frozen(values) >= length:
            raise ConfigurationError(
                f"{self.name}.frozen: {values['frozen']} of {length} rows leaves none to train in layer {layer}",
                hint=f"use fewer, or a length above {values['frozen']}",
            )
        check_open_attention(self.name, shape, layer=layer)


def _frozen(values: Mapping[str, FieldValue]) -> int:
    frozen = values["frozen"]
    assert isinstance(frozen, int)
    return frozen
