"""Can the values of a space be built on the model's layers? Asked once, when a space is bound."""

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from math import prod
from typing import Final, cast

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.bound import BoundField
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.counts import corner
from autopeft.spaces.domain import LogReal, Real
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.structure import BoundMethod, Structure

MOST_LEVELS: Final = 4096
"""Values of one field that are tried: the smallest, and the largest of all."""
MOST_COMBINATIONS: Final = 16384
"""Of the settings of a method that limit each other; of more none is tried, and all are asked as they are drawn."""

Values = Mapping[str, FieldValue]
Levels = Mapping[str, Sequence[FieldValue]]


def check_structure(structure: Structure, shape: ModelShape) -> Collection[str]:
    """The methods of which some combinations of settings may not fit, where each setting alone fits with others.

    A method is asked with all targets that it may have. Where its settings limit each other (`coupled`) each value must
    fit with some of the others'; in other methods each must fit, with every whole number beside it at its highest.

    Raises:
        SpaceError: The first value, from the smallest, that a method refuses on a layer.
    """
    uneven: set[str] = set()
    for method in structure.methods:
        seen: set[object] = set()
        for position, layer in enumerate(structure.layers):
            largest = corner(method, position, high=True)
            levels = _levels(method, position) if largest else {}
            kind = (shape.kind_of(layer), tuple(largest.items()), tuple((name, *row) for name, row in levels.items()))
            if largest and kind not in seen:
                seen.add(kind)
                check = _check_combined if method.method.coupled else _check_alone
                if not check(_Asked(method, layer, shape), levels, largest):
                    uneven.add(method.name)
    return uneven


class _Asked:
    """A method at one layer, asked for values."""

    def __init__(self, method: BoundMethod, layer: int, shape: ModelShape) -> None:
        self.method, self.layer, self.shape = method, layer, shape

    def problem(self, values: Values) -> ConfigurationError | None:
        try:
            self.method.method.check(self.shape, layer=self.layer, values=values)
        except ConfigurationError as error:
            return error
        return None


def _check_alone(asked: _Asked, levels: Levels, largest: Values) -> bool:
    """Whether all fit; raises for the first that does not."""
    for name, row in levels.items():
        for value in row:
            problem = asked.problem({**largest, name: value})
            if problem is not None:
                raise SpaceError(f"space.{problem.message}", hint=problem.hint)
    return True


def _check_combined(asked: _Asked, levels: Levels, largest: Values) -> bool:
    """Whether all combinations fit; raises for the first value that fits with none, where all were tried."""
    if prod(map(len, levels.values())) > MOST_COMBINATIONS:
        return False
    problems: dict[tuple[str, FieldValue], ConfigurationError] = {}
    fitting: set[tuple[str, FieldValue]] = set()
    for values in product(*(reversed(row) for row in levels.values())):
        row = tuple(zip(levels, values, strict=True))
        problem = asked.problem({**largest, **dict(row)})
        if problem is None:
            fitting |= set(row)
        else:
            problems |= {pair: problem for pair in row if pair not in problems}
    for pair, problem in problems.items():
        if pair not in fitting:
            raise SpaceError(f"space.{problem.message}", hint=problem.hint)
    return not problems


def _levels(method: BoundMethod, position: int) -> dict[str, Sequence[FieldValue]]:
    """What each field but the targets may have there, where that is more than one value; the size always."""
    found: dict[str, Sequence[FieldValue]] = {}
    for field in (method.size, *method.others):
        row = () if field.sites is not None else _row(field, position)
        if field is method.size:
            row = tuple(size for size in row if size)
        if len(row) > 1 or (row and field is method.size):
            found[field.field.name] = row if len(row) <= MOST_LEVELS else (*row[:MOST_LEVELS], row[-1])
    return found


def _row(field: BoundField, position: int) -> Sequence[FieldValue]:
    """The values of a field, the two ends of a continuous one."""
    cell = field.cell_at(position)
    if cell.levels is not None:
        return cast("Sequence[FieldValue]", cell.levels)
    domain = cell.dimensions[0].domain
    assert isinstance(domain, Real | LogReal)
    return (domain.low, domain.high)
