"""The norms of chosen layers, trained."""

from collections.abc import Mapping
from typing import Final, final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import size_of
from autopeft.spaces.model_shape import ModelShape, Part

_PARTS: Final[Mapping[str, slice]] = {"all": slice(None), "first": slice(1), "last": slice(-1, None)}


def norms_of(shape: ModelShape, layer: int, values: Mapping[str, FieldValue]) -> tuple[Part, ...]:
    """The norms inside `layer` that `values` trains, in module order; names are those in the bare base model."""
    inside = f"{shape.path_of(layer)}."
    found = [part for part in shape.parts if part.name.startswith(inside) and "norm" in part.kind.lower()]
    return tuple(found[_PARTS[str(values["norms"])]])


@final
class LnTuning(AbstractMethod):
    """Weight (and bias) of the layer's norms, each trained from where it is."""

    name = "ln_tuning"
    source = "Zhao et al. 2023 (arXiv 2312.11420), as Hugging Face PEFT's LN_TUNING"
    learning_rates = RateRange(low=1e-4, high=1e-2)
    fields = (
        Field(name="enabled", kind=FieldKind.SIZE, default=None, low=0, high=1, help="1 where the norms are trained"),
        Field(
            name="norms",
            kind=FieldKind.CATEGORY,
            default="all",
            choices=tuple(_PARTS),
            help="which of a layer, in module order: in most models the first is the attention's, the last the MLP's",
        ),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        size_of(self.name, "enabled", values)
        return sum(part.n_parameters for part in norms_of(shape, layer, values))

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "enabled", values)
        if not norms_of(shape, layer, values):
            raise ConfigurationError(
                f"{self.name}: layer {layer} of this {shape.family} model has no norm with parameters",
                hint=f"leave {self.name} out of that layer",
            )
