"""What one dimension may be: the domains of the search-space language, each with a unit scale and its neighbours.

A *scalar* domain (`Choice`, `Integer`, `Real`, `LogReal`, `Flag`) maps its values to [0, 1] and back. `Subset` expands
into one flag an item, and `Halvings` becomes a `Choice` once the width of the model is known.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from autopeft.errors import SpaceError
from autopeft.spaces.configuration import Scalar

MAX_LEVELS = 1_000_000
"""Integers a range may hold."""
MAX_ITEMS = 16
"""Items a subset may choose from."""
FINE = 16
"""An ordinal domain with more levels than this also has neighbours a fraction of its range away."""
STRIDES = (0.1, 0.3)
"""Fractions of a continuous (or fine) domain's unit scale that a neighbour may be away."""
PLAIN_WORD = re.compile(r"[A-Za-z_]\w*(?:[.-]\w+)*")
"""A word that needs no quotes, as `expression` reads it."""
DIGITS = 6
"""Significant digits of a real value, so that equal spellings are equal."""


def significant(value: float) -> float:
    """`value` rounded to six significant digits."""
    return float(f"{value:.{DIGITS}g}")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def spelled(value: Scalar) -> str:
    """`value` as the language writes it: `true` and `false` in lower case, what is no plain word in quotes."""
    if isinstance(value, str) and not PLAIN_WORD.fullmatch(value):
        return f"'{value}'" if '"' in value else f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bins(unit: float, n: int) -> int:
    return min(max(int(unit * n), 0), n - 1)


def _distinct(values: Sequence[Scalar], place: str) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise SpaceError(f"{place}: {spelled(value)} is there twice", hint="name each value once")


def _bounds(low: object, high: object, place: str) -> None:
    for end in (low, high):
        if not is_number(end) or not math.isfinite(float(end)):  # type: ignore[arg-type]  # a number by the first test
            raise SpaceError(f"{place}: {end!r} is not a finite number", hint="both ends of a range are numbers")
    if low > high:  # type: ignore[operator]  # numbers by the loop above
        raise SpaceError(f"{place}: the low end {low} is above the high end {high}", hint="swap the two ends")
    if low == high:
        raise SpaceError(f"{place}: both ends are {low}, nothing is left to search", hint=f"write the value {low}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the listed values; ordinal when they are numbers, in ascending order."""

    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise SpaceError("choice(): no value to choose from", hint="list at least one, e.g. choice(0, 8)")
        if len({_sort(value) for value in self.values}) > 1:
            raise SpaceError(f"{self}: mixes numbers, words and flags", hint="choose among values of one type")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise SpaceError(f"{self}: holds a value that is no finite number", hint="leave nan and inf out")
        _distinct(self.values, str(self))

    def __str__(self) -> str:
        return f"choice({', '.join(spelled(value) for value in self.values)})"

    @property
    def levels(self) -> Sequence[Scalar]:
        return self.values

    @property
    def ordinal(self) -> bool:
        return is_number(self.values[0])

    def contains(self, value: object) -> bool:
        return value in self.values and isinstance(value, bool) == isinstance(self.values[0], bool)

    def to_unit(self, value: Scalar) -> float:
        return self.values.index(value) / max(len(self.values) - 1, 1)

    def from_unit(self, unit: float) -> Scalar:
        return self.values[_bins(unit, len(self.values))]

    def steps(self, value: Scalar) -> tuple[Scalar, ...]:
        """Adjacent levels of an ordinal domain, every other level of a categorical one."""
        if not self.ordinal:
            return tuple(level for level in self.values if level != value)
        index = self.values.index(value)
        return self.values[max(index - 1, 0) : index] + self.values[index + 1 : index + 2]


def _sort(value: object) -> str:
    return "number" if is_number(value) else type(value).__name__


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    """A whole number from `low` to `high`, both included; `log` spaces its unit scale logarithmically."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _bounds(self.low, self.high, str(self))
        if int(self.low) != self.low or int(self.high) != self.high:
            raise SpaceError(f"{self}: the ends are not whole numbers", hint="use real(lo, hi) for fractions")
        if self.log and self.low < 1:
            raise SpaceError(f"{self}: a logarithmic range starts above 0", hint="use choice(0, ...) to have 0 too")
        if self.high - self.low >= MAX_LEVELS:
            raise SpaceError(f"{self}: more than {MAX_LEVELS} values", hint="use choice(...) or a shorter range")

    def __str__(self) -> str:
        return f"int({self.low}, {self.high}{', log' if self.log else ''})"

    @property
    def levels(self) -> Sequence[Scalar]:
        return range(self.low, self.high + 1)

    @property
    def ordinal(self) -> bool:
        return True

    def contains(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def to_unit(self, value: Scalar) -> float:
        number = int(value)
        if not self.log:
            return (number - self.low) / (self.high - self.low)
        return math.log((number + 0.5) / self.low) / math.log((self.high + 1) / self.low)

    def from_unit(self, unit: float) -> Scalar:
        if not self.log:
            return self.low + _bins(unit, self.high - self.low + 1)
        number = math.floor(self.low * ((self.high + 1) / self.low) ** min(max(unit, 0.0), 1.0))
        return min(max(number, self.low), self.high)

    def steps(self, value: Scalar) -> tuple[Scalar, ...]:
        near: list[Scalar] = [int(value) - 1, int(value) + 1]
        if self.high - self.low >= FINE:
            near += _strides(self, value)
        return tuple(sorted({step for step in near if self.contains(step) and step != value}))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """A real number from `low` to `high`, rounded to six significant digits."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _bounds(self.low, self.high, str(self))

    def __str__(self) -> str:
        return f"real({self.low}, {self.high})"

    @property
    def levels(self) -> None:
        return None

    @property
    def ordinal(self) -> bool:
        return True

    def contains(self, value: object) -> bool:
        return is_number(value) and self.low <= float(value) <= self.high  # type: ignore[arg-type]  # a number

    def to_unit(self, value: Scalar) -> float:
        return (float(value) - self.low) / (self.high - self.low)

    def from_unit(self, unit: float) -> Scalar:
        value = significant(self.low + min(max(unit, 0.0), 1.0) * (self.high - self.low))
        return float(min(max(value, self.low), self.high))

    def steps(self, value: Scalar) -> tuple[Scalar, ...]:
        return tuple(_strides(self, value))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LogReal:
    """A real number from `low` to `high` on a logarithmic scale, rounded to six significant digits."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _bounds(self.low, self.high, str(self))
        if self.low <= 0:
            raise SpaceError(f"{self}: a logarithmic range starts above 0", hint="use real(lo, hi) to have 0 too")

    def __str__(self) -> str:
        return f"log({self.low}, {self.high})"

    @property
    def levels(self) -> None:
        return None

    @property
    def ordinal(self) -> bool:
        return True

    def contains(self, value: object) -> bool:
        return is_number(value) and self.low <= float(value) <= self.high  # type: ignore[arg-type]  # a number

    def to_unit(self, value: Scalar) -> float:
        return math.log(float(value) / self.low) / math.log(self.high / self.low)

    def from_unit(self, unit: float) -> Scalar:
        value = significant(self.low * (self.high / self.low) ** min(max(unit, 0.0), 1.0))
        return float(min(max(value, self.low), self.high))

    def steps(self, value: Scalar) -> tuple[Scalar, ...]:
        return tuple(_strides(self, value))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """Off or on."""

    def __str__(self) -> str:
        return "bool"

    @property
    def levels(self) -> Sequence[Scalar]:
        return (False, True)

    @property
    def ordinal(self) -> bool:
        return True

    def contains(self, value: object) -> bool:
        return isinstance(value, bool)

    def to_unit(self, value: Scalar) -> float:
        return float(value)

    def from_unit(self, unit: float) -> Scalar:
        return unit >= 0.5

    def steps(self, value: Scalar) -> tuple[Scalar, ...]:
        return (not value,)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Any set of the items with `min` to `max` members; no items means all there are (the model's layers)."""

    items: tuple[str, ...] = ()
    min: int = 1
    max: int | None = None

    def __post_init__(self) -> None:
        _distinct(self.items, str(self))
        if len(self.items) > MAX_ITEMS:
            raise SpaceError(f"{self}: more than {MAX_ITEMS} items", hint="use a group word such as all-linear")
        for name, value in (("min", self.min), ("max", self.max)):
            if value is not None and (not is_number(value) or int(value) != value or value < 1):
                raise SpaceError(f"{self}: {name} is {value}, not a whole number from 1", hint=f"write {name}=1")
        top = min(self.max or MAX_LEVELS, len(self.items) or MAX_LEVELS)
        most = "no max" if self.max is None else f"max {self.max}"
        if self.min > top or (self.items and (self.max or 0) > len(self.items)):
            raise SpaceError(
                f"{self}: min {self.min} and {most} do not fit {len(self.items) or 'the'} items",
                hint="min <= max <= number of items",
            )

    def __str__(self) -> str:
        parts = [spelled(item) for item in self.items]
        parts += [f"min={self.min}"] if self.min != 1 else []
        parts += [f"max={self.max}"] if self.max is not None else []
        return f"subset({', '.join(parts)})" if parts else "subset"

    def admits(self, count: int) -> bool:
        """Whether a set of `count` members is one of these subsets."""
        return self.min <= count and (self.max is None or count <= self.max)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Halvings:
    """Zero and the hidden width divided by 1, 2, 4, ..., `steps` sizes in all, rounded down, each once.

    The sizes of AutoPEFT (arXiv 2301.12132): for a width of 768 and ten steps {0, 1, 3, 6, 12, ..., 384, 768}.
    """

    steps: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or not 1 <= self.steps <= 20:
            raise SpaceError(f"halvings(hidden, {self.steps}): steps are 1 to 20", hint="write halvings(hidden)")

    def __str__(self) -> str:
        return "halvings(hidden)" if self.steps == 10 else f"halvings(hidden, {self.steps})"

    def resolve(self, hidden_size: int) -> Choice:
        sizes = {hidden_size // 2**power for power in range(self.steps)}
        return Choice(values=tuple(sorted(sizes | {0})))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A plain value: nothing to search. A tuple is a set of target words."""

    value: Scalar | tuple[str, ...]

    def __str__(self) -> str:
        return f"[{', '.join(self.value)}]" if isinstance(self.value, tuple) else spelled(self.value)


ScalarDomain = Choice | Integer | Real | LogReal | Flag
Domain = ScalarDomain | Subset | Halvings | Fixed


def _strides(domain: Integer | Real | LogReal, value: Scalar) -> list[Scalar]:
    here = domain.to_unit(value)
    moves = [here + sign * stride for stride in STRIDES for sign in (-1, 1)]
    reached = [domain.from_unit(min(max(unit, 0.0), 1.0)) for unit in moves]
    return sorted({step for step in reached if step != value})


def choice(*values: Scalar) -> Choice:
    return Choice(values=values)


def int_(low: int, high: int, *, log: bool = False) -> Integer:
    return Integer(low=low, high=high, log=log)


def real(low: float, high: float) -> Real:
    return Real(low=low, high=high)


def log(low: float, high: float) -> LogReal:
    return LogReal(low=low, high=high)


def bool_() -> Flag:
    return Flag()


def subset(*items: str, min: int = 1, max: int | None = None) -> Subset:
    return Subset(items=items, min=min, max=max)


def halvings(*, steps: int = 10) -> Halvings:
    return Halvings(steps=steps)
