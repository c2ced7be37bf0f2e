"""Parallel bottleneck adapter whose weights are kept in one, two or four bits a number."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.binary_lora import BITS, check_bits
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import bottleneck_parameters, check_bottleneck
from autopeft.spaces.methods.serial_adapter import ACTIVATIONS
from autopeft.spaces.model_shape import ModelShape


@final
class BinaryAdapter(AbstractMethod):
    """Beside the feed-forward block of x: scale * (Q(up) act(Q(down) x + b) + c); the biases stay in full."""

    name = "binary_adapter"
    source = "Bi-AdaptFormer, Jie et al. 2023 (arXiv 2307.16867)"
    learning_rates = RateRange(low=3e-4, high=3e-3, source="Bi-AdaptFormer 1e-3")
    fields = (
        Field(name="bottleneck", kind=FieldKind.SIZE, default=None, low=0, help="width between down and up"),
        Field(name="activation", kind=FieldKind.CATEGORY, default="relu", choices=ACTIVATIONS, help="act"),
        Field(
            name="scale", kind=FieldKind.REAL, default=1.0, low=1e-6, high=1e3, help="factor of the adapter's output"
        ),
        BITS,
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return bottleneck_parameters(shape, values)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        check_bottleneck(self.name, shape, layer=layer, values=values)
        check_bits(self.name, values)
