"""Exact trainable parameters of configurations of one structure, and the range they lie in."""

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast, final

from autopeft.spaces.bound import BoundField
from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.structure import BoundMethod, Structure

_CACHED = 200_000
Key = TypeVar("Key")


@final
class ParameterCounter:
    """Adds the methods' closed forms over layers; remembers rows and whole method settings."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        kinds: dict[object, int] = {}
        self._kind = [kinds.setdefault(shape.kind_of(layer), len(kinds)) for layer in range(shape.n_layers)]
        self._rows: dict[tuple[object, ...], int] = {}
        self._settings: dict[tuple[object, ...], int] = {}

    def __call__(self, configuration: Configuration) -> int:
        total = 0
        for setting in configuration.methods:
            key = (setting.method, setting.layers, setting.fields)
            count = self._settings.get(key)
            if count is None:
                count = self._count(setting)
                _remember(self._settings, key, count)
            total += count
        return total

    def _count(self, setting: MethodSetting) -> int:
        names = [name for name, _ in setting.fields]
        columns = [column for _, column in setting.fields]
        rows = zip(setting.layers, zip(*columns, strict=True), strict=True)
        own = sum(self.row(setting.method, layer, names, row) for layer, row in rows)
        return own + METHODS[setting.method].shared_parameters(self._shape, setting)

    def row(self, method: str, layer: int, names: Sequence[str], row: Sequence[FieldValue]) -> int:
        """Parameters of `method` at `layer` with the field values `row`."""
        key = (method, self._kind[layer], *row)
        if key not in self._rows:
            values = dict(zip(names, row, strict=True))
            _remember(self._rows, key, METHODS[method].parameters(self._shape, layer=layer, values=values))
        return self._rows[key]

    def limits(self, structure: Structure) -> tuple[int, int]:
        """A lower and an upper bound of the parameters of every configuration of `structure`."""
        least: list[int] = []
        most = 0
        for method in structure.methods:
            largest: dict[int, dict[str, FieldValue]] = {}
            for position, layer in enumerate(structure.layers):
                small, large = corner(method, position, high=False), corner(method, position, high=True)
                least.append(self.row(method.name, layer, list(small), list(small.values())) if small else 0)
                if large:
                    largest[layer] = large
            most += self._count(_setting(method.name, largest)) if largest else 0
        return max(1, min((count for count in least if count), default=1)), max(most, 1)


def _remember(cache: dict[Key, int], key: Key, count: int) -> None:
    if len(cache) >= _CACHED:
        cache.clear()
    cache[key] = count


def _setting(method: str, rows: Mapping[int, Mapping[str, FieldValue]]) -> MethodSetting:
    """`rows` of field values by layer as a setting."""
    names = sorted(next(iter(rows.values())))
    fields = tuple((name, tuple(row[name] for row in rows.values())) for name in names)
    return MethodSetting(method=method, layers=tuple(rows), fields=fields)


def corner(method: BoundMethod, position: int, *, high: bool) -> dict[str, FieldValue]:
    """The smallest or largest values of `method` at `position`; empty when its size can only be 0."""
    sizes = cast(Sequence[int], method.size.cell_at(position).levels)
    size = sizes[-1] if high or sizes[0] else next((level for level in sizes if level), 0)
    if not size:
        return {}
    values: dict[str, FieldValue] = {method.size.field.name: size}
    for field in method.others:
        values[field.field.name] = (
            _targets(field, position, high=high) if field.sites else _end(field, position, high=high)
        )
    return values


def _targets(field: BoundField, position: int, *, high: bool) -> FieldValue:
    assert field.sites is not None
    sets = list(field.sites[position].values())
    if not high:
        return min(sets, key=len)
    everything = {name for names in sets for name in names}
    order: Mapping[str, None] = dict.fromkeys(name for names in sorted(sets, key=len, reverse=True) for name in names)
    return tuple(name for name in order if name in everything)


def _end(field: BoundField, position: int, *, high: bool) -> FieldValue:
    """The lowest or highest whole number that an integer field may have there; the default of other fields."""
    cell = field.cell_at(position)
    if field.field.kind is not FieldKind.INTEGER or not cell.levels:
        return cast(FieldValue, cell.default)
    return cast(FieldValue, cell.levels[-1 if high else 0])
