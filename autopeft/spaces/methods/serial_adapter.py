"""Serial bottleneck adapter after the feed-forward block."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import bottleneck_parameters, check_bottleneck
from autopeft.spaces.model_shape import ModelShape

ACTIVATIONS = ("relu", "gelu", "tanh", "silu")


@final
class SerialAdapter(AbstractMethod):
    """After the last linear z of the feed-forward block: z + scale * up(act(down(z))), with biases."""

    name = "serial_adapter"
    source = "Houlsby et al. 2019 (arXiv 1902.00751), placed as in Pfeiffer et al. 2021 (arXiv 2005.00247)"
    learning_rates = RateRange(low=1e-4, high=5e-3, source="AutoPEFT 1e-4; adapters of audio transformers 5e-3")
    fields = (
        Field(name="bottleneck", kind=FieldKind.SIZE, default=None, low=0, help="width between down and up"),
        Field(name="activation", kind=FieldKind.CATEGORY, default="relu", choices=ACTIVATIONS, help="act"),
        Field(
            name="scale", kind=FieldKind.REAL, default=1.0, low=1e-6, high=1e3, help="factor of the adapter's output"
        ),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return bottleneck_parameters(shape, values)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        check_bottleneck(self.name, shape, layer=layer, values=values)
