"""Can every size of a space be built on the model's layers? Asked once, when a space is bound."""

from collections.abc import Mapping, Sequence
from typing import cast

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.counts import corner
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.structure import BoundMethod, Structure


def check_structure(structure: Structure, shape: ModelShape) -> None:
    """Raise SpaceError for the smallest size that a method refuses on a layer, with all targets it may have."""
    for method in structure.methods:
        seen: set[object] = set()
        for position, layer in enumerate(structure.layers):
            if shape.layers[layer] not in seen:
                seen.add(shape.layers[layer])
                _check_layer(method, position, layer, shape)


def _check_layer(method: BoundMethod, position: int, layer: int, shape: ModelShape) -> None:
    largest = corner(method, position, high=True)
    if not largest or _problem(method, largest, layer, shape) is None:
        return
    sizes = cast(Sequence[int], method.size.levels)
    for size in sizes:
        problem = _problem(method, largest | {method.size.field.name: size}, layer, shape) if size else None
        if problem is not None:
            raise SpaceError(f"space.{problem.message}", hint=problem.hint)


def _problem(
    method: BoundMethod, values: Mapping[str, FieldValue], layer: int, shape: ModelShape
) -> ConfigurationError | None:
    try:
        method.method.check(shape, layer=layer, values=values)
    except ConfigurationError as error:
        return error
    return None
