"""Can every size of a space be built on the model's layers? Asked once, when a space is bound."""

from collections.abc import Mapping, Sequence
from typing import cast

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.counts import corner
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.structure import BoundMethod, Structure


def check_structure(structure: Structure, shape: ModelShape) -> None:
    """Raise SpaceError for the smallest size that a method refuses on a layer, with the most its other settings allow.

    That is with all targets it may have, and every whole number beside the size at its highest.
    """
    for method in structure.methods:
        seen: set[object] = set()
        for position, layer in enumerate(structure.layers):
            largest = corner(method, position, high=True)
            kind = (shape.layers[layer], method.size.cell_at(position).levels, tuple(largest.values()))
            if largest and kind not in seen:
                seen.add(kind)
                _check_layer(method, position, layer, shape)


def _check_layer(method: BoundMethod, position: int, layer: int, shape: ModelShape) -> None:
    largest = corner(method, position, high=True)
    sizes = [size for size in cast(Sequence[int], method.size.cell_at(position).levels) if size]
    name = method.size.field.name
    if all(_problem(method, largest | {name: size}, layer, shape) is None for size in (sizes[0], sizes[-1])):
        return
    for size in sizes:
        problem = _problem(method, largest | {name: size}, layer, shape)
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
