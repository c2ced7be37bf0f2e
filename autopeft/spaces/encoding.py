"""Configurations as vectors: all dimensions in [0, 1] for samplers, and a merged encoding for surrogate models."""

import math
from collections.abc import Callable, Mapping
from typing import final

import numpy as np
from numpy.typing import NDArray

from autopeft.spaces.bound import BoundField
from autopeft.spaces.configuration import Configuration, Scalar
from autopeft.spaces.counts import ParameterCounter
from autopeft.spaces.dimension import Dimension
from autopeft.spaces.structure import Structure
from autopeft.spaces.typical_scales import typical_scales

Vector = NDArray[np.float64]
_RESOLUTION = 8
"""Steps between absent and the largest size that a size with many levels is given at most."""


def encode(dimensions: tuple[Dimension, ...], values: Mapping[str, Scalar]) -> Vector:
    """Position of each dimension on its unit scale, [d] in [0, 1]; those not in `values` at their default."""
    return np.array([row.domain.to_unit(values.get(row.name, row.default)) for row in dimensions])


def decode(dimensions: tuple[Dimension, ...], vector: Vector) -> dict[str, Scalar]:
    """Values of all dimensions at `vector` [d]: levels by bins of equal width, numbers outside [0, 1] clipped."""
    return {row.name: row.domain.from_unit(float(unit)) for row, unit in zip(dimensions, vector, strict=True)}


@final
class Featurizer:
    """The encoding a surrogate model sees: an absent module and its size are one ordinal, 0 being absent.

    One feature a size (a mask's flags follow only where a size spans several layers; else the sizes say it), one for
    every other ordinal dimension, one a category, and the logarithm of the trainable parameters. Inactive dimensions
    are at their default.
    """

    def __init__(self, structure: Structure, parameters: ParameterCounter) -> None:
        sizes = [method.size for method in structure.methods]
        implied = all(_own_size_per_layer(size, len(structure.layers)) for size in sizes)
        mask = {cell.name for cell in (structure.mask.cells if structure.mask else ())}
        kept = [row for row in structure.dimensions if not (implied and row.name in mask)]
        self._rows = [(row.name, _column(row)) for row in kept]
        self.names = (*(name for row in kept for name in _names(row)), "log(parameters)")
        self._parameters = parameters
        low, high = parameters.limits(structure)
        self.parameter_bounds = low, high
        self._scale = math.log(low), math.log(high)
        self.lengthscales = typical_scales([(row, len(_names(row))) for row in kept], self._scale)

    def __call__(self, configuration: Configuration, values: Mapping[str, Scalar]) -> Vector:
        """[f] in [0, 1] for `configuration`, whose active dimensions have `values`."""
        numbers: list[float] = []
        for name, column in self._rows:
            numbers += column(values.get(name))
        low, high = self._scale
        scaled = (math.log(self._parameters(configuration)) - low) / max(high - low, 1e-9)
        numbers.append(min(max(scaled, 0.0), 1.0))
        return np.array(numbers)


def _own_size_per_layer(size: BoundField, n: int) -> bool:
    return len(size.cells) == n and size.ramp is None and all(cell.dimensions for cell in size.cells)


def _names(row: Dimension) -> list[str]:
    if row.ordinal:
        return [row.name]
    return [f"{row.name}={level}" for level in row.levels or ()]


def _column(row: Dimension) -> Callable[[Scalar | None], list[float]]:
    """Features of one dimension by its value, None when inactive; a table where the levels are few."""
    if row.is_size:
        return _size_column(row)
    if row.levels is None or len(row.levels) > 4096:
        domain, default = row.domain, row.default
        return lambda value: [domain.to_unit(default if value is None else value)]
    if row.ordinal:
        table = {level: [row.domain.to_unit(level)] for level in row.levels}
    else:
        table = {level: [float(level == other) for other in row.levels] for level in row.levels}
    return lambda value, table=table, default=table[row.default]: default if value is None else table[value]


def _size_column(row: Dimension) -> Callable[[Scalar | None], list[float]]:
    levels = row.sizes
    low = next(level for level in levels if level)
    n = len(levels) - (levels[0] == 0)
    steps = min(n, _RESOLUTION)
    domain = row.domain

    def column(value: Scalar | None) -> list[float]:
        if not value:
            return [0.0]
        start, unit = domain.to_unit(low), domain.to_unit(value)
        share = (unit - start) / (1 - start) if start < 1 else 1.0
        return [(1 + share * (steps - 1)) / steps]

    if len(levels) > 4096:
        return column
    table: dict[Scalar | None, list[float]] = {None: [0.0]}
    table.update((level, column(level)) for level in levels)
    return table.__getitem__
