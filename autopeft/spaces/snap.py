"""The network of a space that is nearest to what is wished for."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import geometric_mean
from typing import Final, final

from autopeft.errors import ConfigurationError
from autopeft.spaces.bound import BoundField
from autopeft.spaces.carry import Values, Wish
from autopeft.spaces.configuration import LEARNING_RATE, Configuration, FieldValue, Scalar
from autopeft.spaces.dimension import Cell, Level
from autopeft.spaces.domain import Choice, Integer, LogReal, Real, is_number
from autopeft.spaces.masks import START, AbstractMask
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.structure import BoundMethod, Structure

_LOST: Final = 100.0
"""Distance between a size and none; far beyond that between any two sizes, in doublings."""
_GAINED: Final = (99.0, 0.0)
"""Distance between no size and one, tried in this order: one value for many layers follows the majority of them; where
that adapts no set of layers that the space has, it is there wherever any layer asks for it."""


def nearest_network(structure: Structure, wish: Wish) -> Configuration:
    """The network of `structure` nearest to `wish`; the same one where `wish` is a network of `structure`.

    Adapted layers first (fewest taken away or added), then each value that layers share by least total distance: sizes
    by doublings, a size being far from none; sets of targets by how many sites differ. Constraints are not asked.

    Raises:
        ConfigurationError: Nothing that is wished for can be had.
    """
    if not any(wish.methods.get(method.name) for method in structure.methods):
        wanted = ", ".join(wish.methods)
        raise ConfigurationError(
            f"{wanted}: not in this space, which has {', '.join(sorted(method.name for method in structure.methods))}",
            hint="nothing of it can be carried over",
        )
    for gained in _GAINED[:-1]:
        try:
            return _Snap(structure, wish, gained).network()
        except ConfigurationError:  # too few layers are left by the majority
            continue
    return _Snap(structure, wish, _GAINED[-1]).network()


@final
class _Snap:
    """Levels of all cells, decided one field after the other."""

    def __init__(self, structure: Structure, wish: Wish, gained: float) -> None:
        self._structure = structure
        self._wish = wish
        self._gained = gained
        index = {layer: position for position, layer in enumerate(structure.layers)}
        self._wanted = {
            method.name: {index[layer]: values for layer, values in wish.methods.get(method.name, {}).items()}
            for method in structure.methods
        }
        asked = [position for rows in self._wanted.values() for position in rows]
        n = len(structure.layers)
        votes = [asked.count(position) for position in range(n)]
        self._on = range(n) if structure.mask is None else nearest_set(structure.mask, votes)
        self._filled = {position: _nearest(position, asked) for position in self._on if position not in asked}
        self._levels: dict[str, Level] = {}

    def network(self) -> Configuration:
        for method in self._structure.methods:
            self._decide(method)
        self._levels |= {cell.name: self._training(name, cell) for name, cell in self._structure.training}
        return self._structure.build(self._on, self._read)

    def _read(self, cell: Cell) -> Level:
        return self._levels.get(cell.name, cell.default)

    def _decide(self, method: BoundMethod) -> None:
        wanted = self._wanted[method.name]
        filled = self._filled if self._structure.mask is not None else {}
        rows = {position: wanted.get(filled.get(position, position)) for position in self._on}
        name = method.size.field.name
        sizes = {position: row[name] if row else 0 for position, row in rows.items()}
        self._choose(method.size, sizes)
        column = method.size.column(self._on, self._read)
        present = [position for position, size in zip(self._on, column, strict=True) if size]
        if not wanted:
            return
        known = {position: rows[position] or wanted[_nearest(position, list(wanted))] for position in present}
        for field in method.others:
            self._choose(field, _column(field, known))
        if method.rate is not None:
            rate = self._wish.rates.get(method.name, self._wish.training.get(LEARNING_RATE))
            cell = method.rate.cells[0]
            self._levels[cell.name] = cell.default if rate is None else nearest_level(cell, rate)

    def _choose(self, field: BoundField, wanted: Mapping[int, FieldValue]) -> None:
        distance = self._size_distance if field.field.kind is FieldKind.SIZE else _distance
        if field.ramp is not None:
            self._choose_ramp(field, wanted, distance)
            return
        for index, cell in enumerate(field.cells):
            here = {position: value for position, value in wanted.items() if field.scope_of[position] == index}
            if not here or not cell.dimensions:
                continue
            if field.sites is not None:
                self._levels[cell.name] = _nearest_targets(field, cell, here)
            else:
                values = [value for value in here.values() if not isinstance(value, tuple)]
                options = dict.fromkeys(nearest_level(cell, value) for value in values)
                totals = {level: sum(distance(level, value) for value in values) for level in options}
                self._levels[cell.name] = min(totals, key=totals.__getitem__)

    def _choose_ramp(
        self, field: BoundField, wanted: Mapping[int, FieldValue], distance: Callable[[Level, FieldValue], float]
    ) -> None:
        assert field.ramp is not None
        assert field.levels is not None
        levels = field.levels
        tables = [
            (field.ramp[position], [distance(level, value) for level in levels]) for position, value in wanted.items()
        ]
        totals = [sum(table[row[pair]] for row, table in tables) for pair in range(len(levels) ** 2)]
        first, last = divmod(totals.index(min(totals)), len(levels))
        self._levels |= {field.cells[0].name: levels[first], field.cells[1].name: levels[last]}

    def _size_distance(self, level: Level, value: FieldValue) -> float:
        if level and value:
            return _distance(level, value)
        return _LOST if value else self._gained if level else 0.0

    def _training(self, name: str, cell: Cell) -> Level:
        value = self._wish.training.get(name)
        if value is None and name == LEARNING_RATE and self._wish.rates:
            value = geometric_mean(self._wish.rates.values())
        return cell.default if value is None else nearest_level(cell, value)


def nearest_set(mask: AbstractMask, votes: Sequence[int]) -> tuple[int, ...]:
    """The set of `mask` at the least distance from the positions with votes: 1 for each added one, else their votes.

    The larger of equally near sets. By dynamic programming over the automaton of the mask, so exactly. Cost:
    O(positions x states).
    """
    best: dict[int, tuple[int, tuple[int, ...]]] = {START: (0, ())}
    for position, vote in enumerate(votes):
        after: dict[int, tuple[int, tuple[int, ...]]] = {}
        for state, (cost, on) in best.items():
            for inside, later in mask.ways(position, state):
                row = (cost + (vote == 0), (*on, position)) if inside else (cost + vote, on)
                if later not in after or _rank(row) < _rank(after[later]):
                    after[later] = row
        best = after
    return min((row for state, row in best.items() if mask.accepts(state)), key=_rank)[1]


def _rank(row: tuple[int, tuple[int, ...]]) -> tuple[int, int]:
    return row[0], -len(row[1])


def nearest_level(cell: Cell, value: Scalar) -> Scalar:
    """The level of a scalar cell nearest to `value`; for a size, a present one where `value` is and there is one."""
    if not cell.dimensions:
        assert not isinstance(cell.default, tuple)
        return cell.default
    row = cell.dimensions[0]
    if isinstance(row.domain, Choice) and row.domain.contains(value):
        return row.domain.values[row.domain.values.index(value)]  # in its own type: 16, not 16.0
    if row.domain.contains(value):
        return value
    if not is_number(value) or not row.ordinal or row.kind == "flag":
        return row.default
    if isinstance(row.domain, (Real, LogReal)):
        return float(min(max(float(value), row.domain.low), row.domain.high))
    if isinstance(row.domain, Integer):
        low = max(row.domain.low, 1) if row.is_size and value else row.domain.low
        return int(min(max(math.floor(float(value) + 0.5), low), row.domain.high))
    every = row.domain.levels
    levels = [level for level in every if level] if row.is_size and value else every
    return min(levels or every, key=lambda level: _distance(level, value))


def _distance(level: Level, value: FieldValue) -> float:
    """Doublings between positive numbers, the difference between others; 0 or 1 for what is no number."""
    if not (is_number(level) and is_number(value)):
        return float(level != value)
    left, right = float(level), float(value)  # type: ignore[arg-type]  # numbers
    return abs(math.log2(left / right)) if left > 0 and right > 0 else abs(left - right)


def _nearest(position: int, among: Sequence[int]) -> int:
    return min(among, key=lambda other: (abs(other - position), other), default=position)


def _column(field: BoundField, rows: Mapping[int, Values]) -> dict[int, FieldValue]:
    name = field.field.name
    return {position: row[name] for position, row in rows.items() if name in row}


def _nearest_targets(field: BoundField, cell: Cell, wanted: Mapping[int, FieldValue]) -> Level:
    """The set of targets with the fewest sites too many or too few, summed over layers."""
    assert field.sites is not None
    assert cell.levels is not None
    totals = dict.fromkeys(cell.levels, 0)
    for position, value in wanted.items():
        assert isinstance(value, tuple)
        chosen = frozenset(value)
        for level, names in field.sites[position].items():
            totals[level] += len(chosen.symmetric_difference(names))
    return min(totals, key=totals.__getitem__)
