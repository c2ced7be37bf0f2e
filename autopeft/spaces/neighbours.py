"""One-exchange neighbours: the networks that differ from a given one in one decision."""

from collections.abc import Iterator, Mapping

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, Scalar
from autopeft.spaces.dimension import Cell, Level
from autopeft.spaces.spelling import build_with, spell
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
    masks = {row.name for cell in (structure.mask.cells if structure.mask else ()) for row in cell.dimensions}
    for dimension in structure.dimensions:
        if dimension.name not in values:
            continue
        for step in dimension.domain.steps(values[dimension.name]):
            changed = values | {dimension.name: step}
            yield from _switch_on(structure, values, changed) if dimension.name in masks else (changed,)


def _switch_on(structure: Structure, values: Values, changed: dict[str, Scalar]) -> Iterator[dict[str, Scalar]]:
    """`changed`, then each method in turn at its smallest on the layers that it adds."""
    assert structure.mask is not None
    before = set(structure.mask.on(lambda cell: _read(cell, values)))
    added = [row for row in structure.mask.on(lambda cell: _read(cell, changed)) if row not in before]
    yield changed
    for method in structure.methods:
        cells = {cell.name: cell for position in added if (cell := method.size.cell_at(position)).dimensions}
        free = [cell for name, cell in cells.items() if name not in values]
        smallest = [(cell, next((level for level in cell.levels or () if level), None)) for cell in free]
        written = [cell.write(level) for cell, level in smallest if level is not None]
        if written:
            yield changed | {name: level for row in written for name, level in row.items()}


def fill(structure: Structure, values: Values) -> Configuration:
    """The network that `values` mean, with active dimensions that they leave out at their default."""
    return build_with(structure, lambda cell: _read(cell, values))


def _read(cell: Cell, values: Values) -> Level:
    if cell.subset is None:  # values come from a network and its steps, so they need no second check
        return values.get(cell.name, cell.default)
    return cell.read(values) if cell.dimensions[0].name in values else cell.default
