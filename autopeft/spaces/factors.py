"""Low-rank pairs B A: which methods have them, and how many numbers their first factors A hold."""

from collections.abc import Mapping
from typing import Final

from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.spaces.methods.rules import positive, target_sites
from autopeft.spaces.methods.s2_lora import ranks_by_shape
from autopeft.spaces.model_shape import ModelShape

FACTORED: Final[Mapping[str, tuple[str, ...]]] = {
    "binary_lora": ("rank",),
    "lora": ("rank",),
    "lora_group": ("rank", "group"),
    "mola": ("rank", "experts"),
    "peft_lora": ("rank",),
    "s2_lora": ("rank",),
    "slora": ("rank",),
}
"""Methods that train a first factor A and a second factor B, and the fields whose product is the rows of A."""


def first_factor_parameters(configuration: Configuration, shape: ModelShape) -> int:
    """Numbers in all first factors A of `configuration` that `lora_fa` leaves untrained; exactly.

    The variant `ffa` of `peft_lora` has none that are trained otherwise.
    """
    total = 0
    for setting in configuration:
        if setting.method == "s2_lora":
            total += sum(rank * d_in for (d_in, _), rank in ranks_by_shape(shape, setting).items())
        elif setting.method in FACTORED:
            for layer in setting.layers:
                values = setting.at(layer)
                assert values is not None
                total += _at_layer(setting.method, shape, layer, values)
    return total


def _at_layer(method: str, shape: ModelShape, layer: int, values: Mapping[str, FieldValue]) -> int:
    if values.get("variant") == "ffa":
        return 0
    rows = 1
    for field in FACTORED[method]:
        rows *= positive(method, field, values)
    return rows * sum(site.d_in for site in target_sites(method, shape, layer=layer, values=values))
