"""LoRA whose factors are kept in one, two or four bits a number."""

from collections.abc import Mapping
from typing import Final, final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.framed import RANK, SCALE, TARGETS, factor_parameters
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import check_rank, size_of
from autopeft.spaces.model_shape import ModelShape

WIDTHS: Final = (1, 2, 4)
BITS: Final = Field(
    name="bits", kind=FieldKind.INTEGER, default=1, low=1, high=4, help="bits of each weight: 1, 2 or 4"
)


def check_bits(method: str, values: Mapping[str, FieldValue]) -> None:
    """Raise ConfigurationError when the weights cannot have that many bits."""
    bits = values.get("bits", BITS.default)
    if bits not in WIDTHS:
        raise ConfigurationError(
            f"{method}.bits: {bits!r} is not 1, 2 or 4", hint="use one of these; lora itself keeps 32"
        )


@final
class BinaryLora(AbstractMethod):
    """y += scale * Q(B) Q(A) x on each target, where Q rounds each factor to 2^bits levels of its distribution."""

    name = "binary_lora"
    source = "Bi-LoRA, Jie et al. 2023 (arXiv 2307.16867)"
    learning_rates = RateRange(low=3e-4, high=3e-3, source="Bi-LoRA 1e-3")
    fields = (RANK, TARGETS, SCALE, BITS)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return factor_parameters(self.name, shape, layer=layer, values=values, core=0, factors=True)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "rank", values)
        check_rank(self.name, shape, layer=layer, values=values)
        check_bits(self.name, values)
