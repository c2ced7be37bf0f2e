"""Sets of layers on one model: their dimensions, the layers they mean, and the automaton by which they are counted.

The layers of a mask are those that some method adapts: a layer where every method is absent is not among them. Each
mask is also read from the first layer to the last, one state at a time, so that counting walks all its sets once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast, final

from autopeft.errors import SpaceError
from autopeft.spaces.dimension import Cell, Dimension, Level, fixed_cell, scalar_cell
from autopeft.spaces.domain import Choice, Fixed, Flag, Integer, Subset
from autopeft.spaces.layer_sets import Counts, LayerRange, LayerSet, LayersFrom, TopLayers, numbers_of

Read = Callable[[Cell], Level]
START = 0
"""State of every mask before the first layer."""


class AbstractMask(ABC):
    """Sets of the positions 0 ... n-1."""

    cells: tuple[Cell, ...]
    """What is drawn."""

    @abstractmethod
    def on(self, read: Read) -> Sequence[int]:
        """The positions, ascending, when the cells hold what `read` says."""

    @abstractmethod
    def spell(self, on: Sequence[int]) -> dict[str, Level]:
        """Levels, by cell name, that mean `on`, one of the sets of this mask (or empty)."""

    @abstractmethod
    def ways(self, position: int, state: int) -> Sequence[tuple[bool, int]]:
        """Whether `position` may be in the set and out of it when the state before it is `state`; the state after."""

    @abstractmethod
    def accepts(self, state: int) -> bool:
        """Whether a set that ends in `state` is one of this mask."""

    @abstractmethod
    def extreme(self, *, most: bool) -> Sequence[int]:
        """The first of the largest or smallest sets."""

    def admits(self, on: Sequence[int], n: int) -> bool:
        """Whether `on` is a set of this mask on `n` positions."""
        state, chosen = START, set(on)
        for position in range(n):
            after = [later for inside, later in self.ways(position, state) if inside is (position in chosen)]
            if not after:
                return False
            state = after[0]
        return self.accepts(state)


@final
class SubsetMask(AbstractMask):
    """One flag a layer."""

    def __init__(self, subset: Subset, n: int) -> None:
        flags = [Dimension(name=f"layers[{layer}]", domain=Flag(), default=True) for layer in range(n)]
        self.cells = tuple(scalar_cell(flag) for flag in flags)
        self._min = subset.min
        self._max = None if subset.max is None or subset.max >= n else subset.max

    def on(self, read: Read) -> Sequence[int]:
        return [position for position, cell in enumerate(self.cells) if read(cell)]

    def spell(self, on: Sequence[int]) -> dict[str, Level]:
        chosen = set(on)
        return {cell.name: index in chosen for index, cell in enumerate(self.cells)}

    def ways(self, position: int, state: int) -> Sequence[tuple[bool, int]]:
        """The state is how many are in, up to `min` where there is no maximum."""
        if state == self._max:
            return [(False, state)]
        return [(False, state), (True, state + 1 if self._max is not None else min(state + 1, self._min))]

    def accepts(self, state: int) -> bool:
        return state >= self._min

    def extreme(self, *, most: bool) -> Sequence[int]:
        return range((self._max or len(self.cells)) if most else self._min)


@final
class RangeMask(AbstractMask):
    """`layers.first` and `layers.last`, in either order."""

    _AFTER = -1

    def __init__(self, layers: LayerRange, n: int) -> None:
        self.cells = (_cell("layers.first", range(n), 0), _cell("layers.last", range(n), n - 1))
        self._min = layers.min
        self._max = None if layers.max is None or layers.max >= n else layers.max

    def on(self, read: Read) -> Sequence[int]:
        first, last = sorted(cast(int, read(cell)) for cell in self.cells)
        return range(first, last + 1)

    def spell(self, on: Sequence[int]) -> dict[str, Level]:
        first, last = self.cells
        return {first.name: on[0], last.name: on[-1]} if on else {}

    def ways(self, position: int, state: int) -> Sequence[tuple[bool, int]]:
        """The state is 0 before the run, its length inside it (up to `min` without a maximum), -1 behind it."""
        if state == self._AFTER:
            return [(False, state)]
        ways = [(False, START)] if state == START else [(False, self._AFTER)] if state >= self._min else []
        if state != self._max:
            ways.append((True, state + 1 if self._max is not None else min(state + 1, self._min)))
        return ways

    def accepts(self, state: int) -> bool:
        return state == self._AFTER or state >= self._min

    def extreme(self, *, most: bool) -> Sequence[int]:
        longest = self._max or len(self.cells[0].levels or ())
        return range(longest if most else self._min)


@final
class SuffixMask(AbstractMask):
    """All positions from a drawn one to the last: `layers.top` (how many) or `layers.from` (the first)."""

    def __init__(self, cell: Cell, starts: dict[Level, int], n: int) -> None:
        self.cells = (cell,)
        self._starts = starts
        self._level_of = {start: level for level, start in starts.items()}
        self._n = n

    def on(self, read: Read) -> Sequence[int]:
        return range(self._starts[read(self.cells[0])], self._n)

    def spell(self, on: Sequence[int]) -> dict[str, Level]:
        return {self.cells[0].name: self._level_of[on[0]]} if on else {}

    def ways(self, position: int, state: int) -> Sequence[tuple[bool, int]]:
        """The state is 1 from the first position on."""
        inside = [(True, 1)] if state or position in self._level_of else []
        return inside if state else [(False, START), *inside]

    def accepts(self, state: int) -> bool:
        return state == 1

    def extreme(self, *, most: bool) -> Sequence[int]:
        starts = self._level_of.keys()
        return range(min(starts) if most else max(starts), self._n)


def bind_mask(layers: LayerSet | tuple[int, ...] | None, n: int) -> AbstractMask | None:
    """`layers` on a model of `n` layers; None where nothing is left to choose.

    Raises:
        SpaceError: The model has too few.
    """
    match layers:
        case Subset() | LayerRange():
            if max(layers.max or layers.min, layers.min) > n:
                raise _too_few(layers, n, f"min and max are at most {n}")
            return SubsetMask(layers, n) if isinstance(layers, Subset) else RangeMask(layers, n)
        case TopLayers(count=Choice() | Integer() as count):
            levels = numbers_of(count)
            starts: dict[Level, int] = {level: n - level for level in levels}
            return SuffixMask(_cell("layers.top", _checked(layers, count, n), levels[0]), starts, n)
        case LayersFrom(first=Choice() | Integer() as first):
            levels = numbers_of(first)
            return SuffixMask(
                _cell("layers.from", _checked(layers, first, n), levels[0]), {level: level for level in levels}, n
            )
        case _:
            return None


def given_layers(layers: LayerSet | tuple[int, ...] | None, n: int) -> tuple[int, ...]:
    """The layers that are named, of `n`; empty where they are chosen, or all.

    Raises:
        SpaceError: The model has too few.
    """
    match layers:
        case TopLayers(count=Fixed() as count):
            return tuple(range(n - numbers_of(_checked(layers, count, n))[0], n))
        case LayersFrom(first=Fixed() as first):
            return tuple(range(numbers_of(_checked(layers, first, n))[0], n))
        case tuple():
            if layers[-1] >= n:
                raise SpaceError(
                    f"space.layers: layer {layers[-1]} of a model with layers 0 to {n - 1}",
                    hint="leave it out; layers count from 0",
                )
            return layers
        case _:
            return ()


def _checked(layers: TopLayers | LayersFrom, numbers: Counts, n: int) -> Counts:
    most = n if isinstance(layers, TopLayers) else n - 1
    if numbers_of(numbers)[-1] > most:
        raise _too_few(layers, n, f"the largest number there is {most}")
    return numbers


def _too_few(layers: LayerSet, n: int, hint: str) -> SpaceError:
    return SpaceError(f"space.layers: {layers} on a model of {n} layers", hint=hint)


def _cell(name: str, numbers: Counts | range, default: int) -> Cell:
    """The cell of whole numbers; one number is no dimension."""
    levels = tuple(numbers) if isinstance(numbers, range) else numbers_of(numbers)
    if len(levels) == 1:
        return fixed_cell(name, levels[0])
    domain = numbers if isinstance(numbers, Integer) else Choice(values=levels)
    if isinstance(numbers, range):
        domain = Integer(low=levels[0], high=levels[-1])
    return scalar_cell(Dimension(name=name, domain=domain, default=default))
