"""One-exchange neighbours: the networks that differ from a given one in one decision."""

from collections.abc import Iterator, Mapping

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, Scalar
from autopeft.spaces.dimension import Cell, Level
from autopeft.spaces.spelling import spell
from autopeft.spaces.structure import Structure

Values = Mapping[str, Scalar]


def neighbours(structure: Structure, configuration: Configuration) -> Iterator[Configuration]:
    """Every network one exchange away, each once, in the order of the dimensions.

    Ordinal dimensions step to adjacent levels (continuous and very fine ones also 10 % and 30 % of their scale away),
    categorical ones to any other, flags flip. Dimensions that become active take their default. A layer is switched on
    with what its shared sizes say; where its sizes are its own, each method in turn at its smallest.
    """
    seen = {configuration}
    for values in exchanges(structure, configuration):
        try:
            other = fill(structure, values)
        except ConfigurationError:  # nothing is adapted any more, or too few layers: not a network of the space
            continue
        if other not in seen:
            seen.add(other)
            yield other


def exchanges(structure: Structure, configuration: Configuration) -> Iterator[dict[str, Scalar]]:
    """Values after each single exchange; some spell no network or the same one."""
    values = spell(structure, configuration)
    for position, cell in enumerate(structure.mask_cells):
        if values[cell.name]:
            yield values | {cell.name: False}
        else:
            yield from _switch_on(structure, values, position)
    masks = {cell.name for cell in structure.mask_cells}
    for dimension in structure.dimensions:
        if dimension.name in values and dimension.name not in masks:
            for step in dimension.domain.steps(values[dimension.name]):
                yield values | {dimension.name: step}


def _switch_on(structure: Structure, values: Values, position: int) -> Iterator[dict[str, Scalar]]:
    on = dict(values) | {structure.mask_cells[position].name: True}
    cells = [method.size.cells[method.size.scope_of[position]] for method in structure.methods]
    free = [cell for cell in cells if cell.name not in values and cell.dimensions]
    yield on
    for cell in free:
        smallest = next((level for level in cell.levels or () if level), None)
        if smallest is not None:
            yield on | cell.write(smallest)


def fill(structure: Structure, values: Values) -> Configuration:
    """The network that `values` mean, with active dimensions that they leave out at their default."""
    cells = structure.mask_cells
    on = (
        [position for position, cell in enumerate(cells) if _read(cell, values)]
        if cells
        else range(len(structure.layers))
    )
    return structure.build(on, lambda cell: _read(cell, values))


def _read(cell: Cell, values: Values) -> Level:
    if cell.subset is None:  # values come from a network and its steps, so they need no second check
        return values.get(cell.name, cell.default)
    return cell.read(values) if cell.dimensions[0].name in values else cell.default
