"""Bottleneck adapters in series with chosen linear maps, as LLM-Adapters places them."""

from collections.abc import Mapping
from typing import Final, final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import size_of, target_sites
from autopeft.spaces.methods.serial_adapter import ACTIVATIONS
from autopeft.spaces.model_shape import ModelShape, Role, Site

INPUT_ROLES: Final = frozenset({Role.MLP_GATE, Role.MLP_UP})
"""Maps whose input the adapter changes; it changes the output of all others."""
INITIALISATIONS: Final = ("bert", "mam")


def linear_bottleneck_fields(targets: str) -> tuple[Field, ...]:
    """The settings that adapters in series with a linear map and parallel to one share."""
    return (
        Field(name="bottleneck", kind=FieldKind.SIZE, default=None, low=0, help="width between down and up"),
        Field(name="targets", kind=FieldKind.TARGETS, default=(targets,), help="linear maps of the layer"),
        Field(name="activation", kind=FieldKind.CATEGORY, default="tanh", choices=ACTIVATIONS, help="act"),
        Field(
            name="scale", kind=FieldKind.REAL, default=1.0, low=1e-6, high=1e3, help="factor of the adapter's output"
        ),
        Field(name="dropout", kind=FieldKind.REAL, default=0.0, low=0.0, high=0.99, help="of the adapter's input"),
        Field(
            name="init",
            kind=FieldKind.CATEGORY,
            default="bert",
            choices=INITIALISATIONS,
            help="bert: N(0, 0.02) both ways; mam: Kaiming down, zero up",
        ),
    )


def series_width(site: Site) -> int:
    """Width of what the adapter at `site` reads and changes."""
    return site.d_in if site.role in INPUT_ROLES else site.d_out


@final
class LinearSeries(AbstractMethod):
    """f(v) = scale * up(act(down(dropout(v)))), no biases: W(x + f(x)) on gate and up maps, Wx + f(Wx) on others."""

    name = "linear_series"
    source = "LLM-Adapters, Hu et al. 2023 (arXiv 2304.01933)"
    learning_rates = RateRange(low=1e-4, high=1e-3, source="LLM-Adapters 3e-4")
    fields = linear_bottleneck_fields("mlp")

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        bottleneck = size_of(self.name, "bottleneck", values)
        sites = target_sites(self.name, shape, layer=layer, values=values)
        return 2 * bottleneck * sum(series_width(site) for site in sites)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "bottleneck", values)
        target_sites(self.name, shape, layer=layer, values=values)
