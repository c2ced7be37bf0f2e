"""The norms of chosen layers, trained."""

from collections.abc import Mapping
from typing import final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import size_of
from autopeft.spaces.model_shape import ModelShape, Part


def norms_of(shape: ModelShape, layer: int) -> tuple[Part, ...]:
    """The norms inside `layer`, in module order; their names are those in the bare base model."""
    inside = f"{shape.path_of(layer)}."
    return tuple(part for part in shape.parts if part.name.startswith(inside) and "norm" in part.kind.lower())


@final
class LnTuning(AbstractMethod):
    """Weight (and bias) of every norm of the layer, each trained from where it is."""

    name = "ln_tuning"
    source = "Zhao et al. 2023 (arXiv 2312.11420), as Hugging Face PEFT's LN_TUNING"
    learning_rates = RateRange(low=1e-4, high=1e-2)
    fields = (
        Field(name="enabled", kind=FieldKind.SIZE, default=None, low=0, high=1, help="1 where the norms are trained"),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        size_of(self.name, "enabled", values)
        return sum(part.n_parameters for part in norms_of(shape, layer))

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "enabled", values)
        if not norms_of(shape, layer):
            raise ConfigurationError(
                f"{self.name}: layer {layer} of this {shape.family} model has no norm with parameters",
                hint=f"leave {self.name} out of that layer",
            )
