"""How a domain spreads over depth: one value, one a layer, one a group of layers, a ramp, or given values by group."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from autopeft.errors import SpaceError
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.domain import Choice, Domain, Fixed, is_number, spelled


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """One value for the whole model (the default, written as the bare domain)."""

    domain: Domain

    def __str__(self) -> str:
        return str(self.domain)

    def scopes(self, n: int) -> tuple[int, ...]:
        """Which draw each of `n` layers takes."""
        return (0,) * n


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayer:
    """One value a layer."""

    domain: Domain

    def __str__(self) -> str:
        return f"per_layer({self.domain})"

    def scopes(self, n: int) -> tuple[int, ...]:
        return tuple(range(n))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PerGroup:
    """One value for each of `groups` consecutive groups of layers, equal in length or one apart, longer ones first."""

    groups: int
    domain: Domain

    def __post_init__(self) -> None:
        if not isinstance(self.groups, int) or isinstance(self.groups, bool) or self.groups < 1:
            raise SpaceError(
                f"per_group({self.groups}, ...): the number of groups is a whole number from 1",
                hint="write per_group(4, choice(0, 8))",
            )

    def __str__(self) -> str:
        return f"per_group({self.groups}, {self.domain})"

    def scopes(self, n: int) -> tuple[int, ...]:
        return _group_of(str(self), self.groups, n)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """First and last layer drawn; between them the position in the domain's levels moves linearly, rounded half up."""

    domain: Domain

    def __str__(self) -> str:
        return f"ramp({self.domain})"

    def scopes(self, n: int) -> tuple[int, ...]:
        return (0,) * n


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Given values, one for each of as many consecutive groups of layers as there are values; nothing is searched."""

    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise SpaceError("groups(): no value", hint="write one value a group of layers, e.g. groups(2, 4, 6, 8)")
        if len({"number" if is_number(value) else type(value).__name__ for value in self.values}) > 1:
            raise SpaceError(f"{self}: mixes numbers, words and flags", hint="give values of one type")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise SpaceError(f"{self}: holds a value that is no finite number", hint="leave nan and inf out")

    def __str__(self) -> str:
        return f"groups({', '.join(spelled(value) for value in self.values)})"

    @property
    def domain(self) -> Choice:
        """The distinct values."""
        return Choice(values=tuple(dict.fromkeys(self.values)))

    def scopes(self, n: int) -> tuple[int, ...]:
        return _group_of(str(self), len(self.values), n)


Spread = Shared | PerLayer | PerGroup | Ramp | Groups


def _group_of(text: str, groups: int, n: int) -> tuple[int, ...]:
    """Which of `groups` consecutive groups each of `n` layers is in."""
    if groups > n:
        raise SpaceError(f"{text}: {groups} groups of {n} layers", hint=f"use at most {n} groups")
    short, longer = divmod(n, groups)
    return tuple(group for group in range(groups) for _ in range(short + (group < longer)))


def as_spread(value: Domain | Spread) -> Spread:
    return value if isinstance(value, (Shared, PerLayer, PerGroup, Ramp, Groups)) else Shared(domain=value)


def ramp_level(first: int, last: int, position: int, n: int) -> int:
    """Level index at `position` of `n` layers on the ramp from `first` to `last`, rounded half up."""
    if n == 1:
        return first
    scaled = first * (n - 1 - position) + last * position
    return (2 * scaled + (n - 1)) // (2 * (n - 1))


def shared(domain: Domain) -> Shared:
    return Shared(domain=_inner(domain, "shared"))


def per_layer(domain: Domain) -> PerLayer:
    return PerLayer(domain=_inner(domain, "per_layer"))


def per_group(groups: int, domain: Domain) -> PerGroup:
    return PerGroup(groups=groups, domain=_inner(domain, "per_group"))


def ramp(domain: Domain) -> Ramp:
    return Ramp(domain=_inner(domain, "ramp"))


def groups(*values: Scalar) -> Groups:
    return Groups(values=values)


SPREADS: dict[str, Callable[[Domain], Spread]] = {"shared": shared, "per_layer": per_layer, "ramp": ramp}
"""Spreads of one argument, by their word."""


def _inner(domain: object, word: str) -> Domain:
    if isinstance(domain, (Shared, PerLayer, PerGroup, Ramp, Groups, Fixed)) or not hasattr(
        domain, "__dataclass_fields__"
    ):
        raise SpaceError(
            f"{word}(...): takes a domain, not {domain}", hint=f"write {word}(choice(0, 8)) or the value alone"
        )
    return domain  # type: ignore[return-value]  # the remaining dataclasses of this language are domains
