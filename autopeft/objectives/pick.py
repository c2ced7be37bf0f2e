"""The little language that names one point of a front: `accuracy >= 0.90, min parameters`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from autopeft.errors import NotFoundError, SpecError
from autopeft.spaces.suggest import nearest

FORMS = "knee, best:OBJECTIVE, trial:N, or a query such as 'accuracy >= 0.90, min parameters'"

UNITS = {"": 1.0, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40, "k": 1e3, "m": 1e6, "b": 1e9}
_COMPARISON = re.compile(r"(\w+)\s*(>=|<=|==|=|>|<)\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*([a-z]*)", re.IGNORECASE)
_EXTREME = re.compile(r"(min|max)\s+(\w+)", re.IGNORECASE)


class Valued(Protocol):
    """Something with numbers by name: a point of a front."""

    @property
    def trial(self) -> int: ...

    @property
    def named(self) -> dict[str, float]: ...


P = TypeVar("P", bound=Valued)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`name operator bound`, e.g. `memory <= 8 GiB`."""

    name: str
    operator: str
    bound: float

    def holds(self, value: float) -> bool:
        match self.operator:
            case ">=":
                return value >= self.bound
            case "<=":
                return value <= self.bound
            case ">":
                return value > self.bound
            case "<":
                return value < self.bound
            case _:
                return value == self.bound

    def distance(self, value: float, *, span: float) -> float:
        """How far `value` is from meeting this, in shares of `span`; 0 where it does."""
        return 0.0 if self.holds(value) else abs(value - self.bound) / (span or abs(self.bound) or 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Conditions that a point must meet, and the one number by which the best of the rest is chosen."""

    comparisons: tuple[Comparison, ...]
    name: str | None
    """What is minimised or maximised; None takes the knee of what is left."""
    sign: float = 1.0
    """1.0 to minimise, -1.0 to maximise."""

    def select(self, points: Sequence[P]) -> list[P]:
        """The points that meet every condition, best first (in the given order without a `min` or `max`).

        Raises:
            NotFoundError: A name that no point has, or no point meets the conditions.
        """
        for name in (*(comparison.name for comparison in self.comparisons), *filter(None, [self.name])):
            known = sorted({key for point in points for key in point.named})
            if name not in known:
                near = nearest(name, known)
                there = f"there are {', '.join(known) or 'none'}"
                raise NotFoundError(f"pick: no value called {name!r}", hint=f"{near} {there}".strip())
        kept = [point for point in points if all(c.holds(point.named[c.name]) for c in self.comparisons)]
        if not kept:
            raise NotFoundError("pick: no point of the front meets the conditions", hint=self._nearest(points))
        if self.name is None:
            return kept
        name = self.name
        return sorted(kept, key=lambda point: self.sign * point.named[name])

    def _nearest(self, points: Sequence[Valued]) -> str:
        """The point that misses the conditions by least, and the ranges that the front has."""
        if not points:
            return "the front is empty"
        names = list(dict.fromkeys(comparison.name for comparison in self.comparisons))
        columns = {name: [point.named[name] for point in points] for name in names}
        spans = {name: max(values) - min(values) for name, values in columns.items()}
        near = min(
            points,
            key=lambda point: sum(c.distance(point.named[c.name], span=spans[c.name]) for c in self.comparisons),
        )
        has = ", ".join(f"{name} {near.named[name]:g}" for name in names)
        ranges = ", ".join(f"{name} {min(values):g} to {max(values):g}" for name, values in columns.items())
        return f"the nearest is trial:{near.trial} with {has}; the front has {ranges}"


def parse_query(text: str) -> Query:
    """The query that `text` spells: conditions and at most one `min NAME` or `max NAME`, separated by commas.

    A bound may carry `KiB`, `MiB`, `GiB`, `TiB`, or `k`, `M`, `B` for thousands, millions, billions.

    Raises:
        SpecError: A part that is neither, a number or unit that is none, or a second `min` or `max`.
    """
    comparisons: list[Comparison] = []
    extremes: list[tuple[str, str]] = []
    for part in (piece.strip() for piece in text.split(",")):
        if found := _EXTREME.fullmatch(part):
            extremes.append((found[1].lower(), found[2]))
        elif found := _COMPARISON.fullmatch(part):
            comparisons.append(_comparison(found))
        else:
            raise SpecError(f"pick: got {part!r}", hint=f"a pick is {FORMS}")
    if len(extremes) > 1:
        raise SpecError(f"pick: {len(extremes)} of min and max in {text!r}", hint="at most one decides")
    kind, name = extremes[0] if extremes else ("min", None)
    return Query(comparisons=tuple(comparisons), name=name, sign=1.0 if kind == "min" else -1.0)


def _comparison(found: re.Match[str]) -> Comparison:
    name, operator, number, unit = found.groups()
    if unit.lower() not in UNITS:
        raise SpecError(f"pick: unknown unit {unit!r} in {found[0]!r}", hint="units are KiB, MiB, GiB, TiB, k, M, B")
    try:
        bound = float(number) * UNITS[unit.lower()]
    except ValueError:
        raise SpecError(f"pick: {number!r} in {found[0]!r} is no number") from None
    return Comparison(name=name, operator=operator, bound=bound)
