"""The objective `parameters`: the exact number of trainable adapter parameters of a configuration."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape

K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Trainable adapter parameters; the task head, the same for every configuration, is not among them."""

    cells: Mapping[tuple[str, int], int]
    """Parameters by (method, layer); only where a method is present. What layers share is with the first of them."""

    @property
    def total(self) -> int:
        return sum(self.cells.values())

    @property
    def by_method(self) -> dict[str, int]:
        """Parameters by method name, in the configuration's order."""
        return _grouped((method, count) for (method, _), count in self.cells.items())

    @property
    def by_layer(self) -> dict[int, int]:
        """Parameters by layer, ascending; only layers that have any."""
        return dict(sorted(_grouped((layer, count) for (_, layer), count in self.cells.items()).items()))


def count_parameters(configuration: Configuration, shape: ModelShape) -> ParameterCount:
    """Exact count, in closed form, equal to the sizes of the tensors that are built.

    Args:
        configuration: A configuration that is valid for `shape`.
        shape: The base model.

    Raises:
        ConfigurationError: A method finds its values impossible on this model (`AbstractMethod.parameters`).
    """
    cells: dict[tuple[str, int], int] = {}
    for setting in configuration:
        method = METHODS[setting.method]
        for layer in setting.layers:
            values = setting.at(layer)
            assert values is not None
            cells[setting.method, layer] = method.parameters(shape, layer=layer, values=values)
        cells[setting.method, setting.layers[0]] += method.shared_parameters(shape, setting)
    return ParameterCount(cells=cells)


def _grouped(pairs: Iterator[tuple[K, int]]) -> dict[K, int]:
    totals: dict[K, int] = defaultdict(int)
    for key, count in pairs:
        totals[key] += count
    return dict(totals)
