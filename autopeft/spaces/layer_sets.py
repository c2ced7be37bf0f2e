"""Which sets of layers a space may adapt, as written under `layers`; `masks` puts them on a model."""

from dataclasses import dataclass
from typing import final

from autopeft.errors import SpaceError
from autopeft.spaces.domain import Choice, Fixed, Integer, Subset, is_number

Counts = Choice | Integer | Fixed
"""Whole numbers to choose from."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRange:
    """Any run of consecutive layers with `min` to `max` members."""

    min: int = 1
    max: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("min", self.min), ("max", self.max)):
            if value is not None and (not is_number(value) or int(value) != value or value < 1):
                raise SpaceError(f"{self}: {name} is {value}, not a whole number from 1", hint=f"write {name}=1")
        if self.max is not None and self.min > self.max:
            raise SpaceError(f"{self}: min is above max", hint="min <= max <= number of layers")

    def __str__(self) -> str:
        parts = [f"min={self.min}"] if self.min != 1 else []
        parts += [f"max={self.max}"] if self.max is not None else []
        return f"range({', '.join(parts)})" if parts else "range"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopLayers:
    """The last layers, as many as drawn."""

    count: Counts

    def __post_init__(self) -> None:
        _check_whole(str(self), self.count, least=1)

    def __str__(self) -> str:
        return f"top({self.count})"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayersFrom:
    """The layers from a drawn one to the last."""

    first: Counts

    def __post_init__(self) -> None:
        _check_whole(str(self), self.first, least=0)

    def __str__(self) -> str:
        return f"from({self.first})"


LayerSet = Subset | LayerRange | TopLayers | LayersFrom


def numbers_of(counts: Counts) -> tuple[int, ...]:
    """The numbers of `counts`, which is checked to hold whole ones, ascending."""
    levels = (counts.value,) if isinstance(counts, Fixed) else counts.levels
    return tuple(sorted(int(level) for level in levels))  # type: ignore[arg-type]  # checked whole


def _check_whole(place: str, counts: object, *, least: int) -> None:
    hint = f"write {place.partition('(')[0]}(int({max(least, 1)}, 6)), or one whole number"
    if not isinstance(counts, (Choice, Integer, Fixed)):
        raise SpaceError(f"{place}: takes whole numbers, not {counts}", hint=hint)
    levels = (counts.value,) if isinstance(counts, Fixed) else counts.levels
    for level in levels:
        if not isinstance(level, int) or isinstance(level, bool) or level < least:
            raise SpaceError(f"{place}: {level!r} is no whole number from {least}", hint=hint)


def range_(*, min: int = 1, max: int | None = None) -> LayerRange:
    return LayerRange(min=min, max=max)


def top(count: Counts | int) -> TopLayers:
    return TopLayers(count=_counts(count))


def from_(first: Counts | int) -> LayersFrom:
    return LayersFrom(first=_counts(first))


def _counts(value: Counts | int) -> Counts:
    return Fixed(value=value) if isinstance(value, int) else value
