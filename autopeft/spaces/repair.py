"""Walking towards the constraints: from a configuration that breaks them to one that does not."""

from typing import Protocol

import numpy as np

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.configuration import Configuration, Scalar
from autopeft.spaces.dimension import Dimension
from autopeft.spaces.neighbours import exchanges, fill
from autopeft.spaces.structure import Structure

_STEPS = 1000
_STARTS = 32


class Constrained(Protocol):
    """What a walk needs of a space."""

    @property
    def structure(self) -> Structure: ...

    def excess(self, configuration: Configuration) -> float: ...

    def _uniform(self, rng: np.random.Generator) -> Configuration: ...


def walk(space: Constrained, configuration: Configuration, rng: np.random.Generator) -> Configuration:
    """Where first-improvement descent of the excess ends, neighbours tried in random order."""
    excess = space.excess(configuration)
    for _ in range(_STEPS):
        if excess == 0:
            break
        better = _better(space, configuration, excess, rng)
        if better is None:
            break
        configuration, excess = better
    return configuration


def _better(
    space: Constrained, configuration: Configuration, excess: float, rng: np.random.Generator
) -> tuple[Configuration, float] | None:
    trials = list(exchanges(space.structure, configuration))
    for index in rng.permutation(len(trials)):
        try:
            other = fill(space.structure, trials[index])
        except ConfigurationError:  # that exchange leaves no network
            continue
        reached = space.excess(other)
        if reached < excess:
            return other, reached
    return None


def repaired(space: Constrained, configuration: Configuration, rng: np.random.Generator) -> Configuration:
    """An admitted configuration near `configuration`.

    Raises:
        SpaceError: None of 32 walks from uniform draws, and none from the extremes of the space, reached one.
    """
    starts = [configuration, *(space._uniform(rng) for _ in range(_STARTS)), *extremes(space.structure)]
    for start in starts:
        end = walk(space, start, rng)
        if space.excess(end) == 0:
            return end
    raise SpaceError("constraints: no admitted configuration was reached from any start", hint="loosen the constraints")


def closest(space: Constrained) -> Configuration:
    """The configuration with the least excess that samples, extremes and descent from the best of them find."""
    rng = np.random.default_rng(0)
    starts = [space._uniform(rng) for _ in range(_STARTS)] + extremes(space.structure)
    starts.sort(key=space.excess)
    ends = [starts[0]]
    for start in starts[:4]:
        if space.excess(ends[-1]) > 0:
            ends.append(walk(space, start, rng))
    return min(ends, key=space.excess)


def extremes(structure: Structure) -> list[Configuration]:
    """Each method alone, as small as it can be, on as few layers; and everything as large as it can be."""
    found: list[Configuration] = []
    trials = [_values(structure, alone=method.name) for method in structure.methods]
    for values in [*trials, _values(structure, alone=None)]:
        try:
            found.append(fill(structure, values))
        except ConfigurationError:  # a condition forbids it
            continue
    return found


def _values(structure: Structure, *, alone: str | None) -> dict[str, Scalar]:
    values: dict[str, Scalar] = {}
    if structure.mask is not None:
        chosen = structure.mask.spell(structure.mask.extreme(most=alone is None))
        values.update({name: level for name, level in chosen.items() if not isinstance(level, tuple)})
    given: set[str] = set()
    for row in structure.dimensions:
        if row.is_size:
            values[row.name] = (
                row.sizes[-1] if alone is None else _small(row, row.method == alone and alone not in given)
            )
            given |= {row.method or ""}
    return values


def _small(row: Dimension, positive: bool) -> Scalar:
    return next(level for level in row.sizes if level) if positive else row.sizes[0]
