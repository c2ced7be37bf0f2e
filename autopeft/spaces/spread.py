"""How a domain spreads over depth: one value, one a layer, one a group of layers, or a ramp between two ends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from autopeft.errors import SpaceError
from autopeft.spaces.domain import Domain, Fixed


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
        if self.groups > n:
            raise SpaceError(f"{self}: {self.groups} groups of {n} layers", hint=f"use at most {n} groups")
        short, longer = divmod(n, self.groups)
        return tuple(group for group in range(self.groups) for _ in range(short + (group < longer)))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """First and last layer drawn; between them the position in the domain's levels moves linearly, rounded half up."""

    domain: Domain

    def __str__(self) -> str:
        return f"ramp({self.domain})"

    def scopes(self, n: int) -> tuple[int, ...]:
        return (0,) * n


Spread = Shared | PerLayer | PerGroup | Ramp


def as_spread(value: Domain | Spread) -> Spread:
    return value if isinstance(value, (Shared, PerLayer, PerGroup, Ramp)) else Shared(domain=value)


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


SPREADS: dict[str, Callable[[Domain], Spread]] = {"shared": shared, "per_layer": per_layer, "ramp": ramp}
"""Spreads of one argument, by their word."""


def _inner(domain: object, word: str) -> Domain:
    if isinstance(domain, (Shared, PerLayer, PerGroup, Ramp, Fixed)) or not hasattr(domain, "__dataclass_fields__"):
        raise SpaceError(
            f"{word}(...): takes a domain, not {domain}", hint=f"write {word}(choice(0, 8)) or the value alone"
        )
    return domain  # type: ignore[return-value]  # the remaining dataclasses of this language are domains
