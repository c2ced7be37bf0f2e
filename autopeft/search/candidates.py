"""Where the acquisition is looked at: uniform draws, changed and crossed front points, and their neighbours."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol, TypeVar

import numpy as np

from autopeft.errors import ConfigurationError
from autopeft.objectives.pareto import Array

Point = TypeVar("Point", bound=Hashable)
"""What is searched: a `Configuration`, or one point of another kind of space; equal points are one."""

Score = Callable[[Sequence[Point]], Array]
"""`[n]` acquisition values of n points, larger better."""


class Space(Protocol[Point]):
    """What the search for a candidate asks of a space; `SearchSpace` is one."""

    def sample(self, rng: np.random.Generator, n: int) -> Sequence[Point]:
        """`n` valid points, uniformly."""
        ...

    def encode(self, point: Point, /) -> Array:
        """`[d]` the point's dimensions in [0, 1]."""
        ...

    def decode(self, vector: Array, /) -> Point:
        """The point there; ConfigurationError where there is none."""
        ...

    def admits(self, point: Point, /) -> bool:
        """Whether the constraints hold."""
        ...

    def neighbours(self, point: Point, /) -> Sequence[Point]:
        """Valid points that differ in one dimension."""
        ...


UNIFORM, MUTATED, CROSSED = 128, 64, 32
"""Seeds of each kind."""

STARTS = 3
"""Best seeds from which a local search starts."""

MAX_LOOKS = 400
"""Neighbours that one local search may look at before its last move; building one takes up to a millisecond."""


def decoded(space: Space[Point], vector: Array) -> Point | None:
    """The point at `vector` `[d]` in [0, 1], None where there is no valid one."""
    try:
        point = space.decode(vector)
    except ConfigurationError:
        return None
    return point if space.admits(point) else None


def best_candidate(
    space: Space[Point],
    score: Score[Point],
    *,
    parents: Sequence[Point],
    excluded: AbstractSet[Point],
    rng: np.random.Generator,
) -> Point | None:
    """The best point found by a discrete local search, never one of `excluded`.

    Args:
        space: Where to look.
        score: What to maximise; a larger value is better.
        parents: Front points, to be changed in one to three dimensions and crossed with each other.
        excluded: Evaluated and pending ones. The search does not pass through them either. Points are compared by
            value, which for a canonical configuration is the same as by id and ten times as fast.
        rng: Decides the seeds and, through their order, ties.

    Returns:
        The best point, None when every seed is excluded.
    """
    seeds = list(_distinct(_seeds(space, parents, rng), excluded))
    if not seeds:
        return None
    values = score(seeds)
    order = np.argsort(-values, kind="stable")[:STARTS]
    ends = [_climb(space, score, seeds[index], float(values[index]), excluded=excluded) for index in order]
    return max(ends, key=lambda end: end[1])[0]


def _climb(
    space: Space[Point], score: Score[Point], start: Point, value: float, *, excluded: AbstractSet[Point]
) -> tuple[Point, float]:
    """Best-improvement moves over one-exchange neighbours until none improves or `MAX_LOOKS` are spent."""
    here, looks = start, 0
    while looks < MAX_LOOKS:
        near = list(_distinct(space.neighbours(here), excluded))
        if not near:
            break
        looks += len(near)
        values = score(near)
        best = int(np.argmax(values))
        if not values[best] > value:
            break
        here, value = near[best], float(values[best])
    return here, value


def _seeds(space: Space[Point], parents: Sequence[Point], rng: np.random.Generator) -> Iterator[Point]:
    yield from space.sample(rng, UNIFORM)
    vectors = [space.encode(parent) for parent in parents]
    if not vectors or not len(vectors[0]):
        return
    for _ in range(MUTATED):
        vector = vectors[rng.integers(len(vectors))].copy()
        changed = rng.choice(len(vector), size=min(int(rng.integers(1, 4)), len(vector)), replace=False)
        vector[changed] = rng.random(len(changed))
        if (child := decoded(space, vector)) is not None:
            yield child
    for _ in range(CROSSED if len(vectors) > 1 else 0):
        first, second = rng.choice(len(vectors), size=2, replace=False)
        vector = np.where(rng.random(len(vectors[0])) < 0.5, vectors[first], vectors[second])
        if (child := decoded(space, vector)) is not None:
            yield child


def _distinct(points: Iterable[Point], excluded: AbstractSet[Point]) -> Iterator[Point]:
    seen = set(excluded)
    for point in points:
        if point not in seen:
            seen.add(point)
            yield point
