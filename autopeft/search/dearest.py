"""The largest configuration of a space, which says how far its known costs reach."""

from collections.abc import Callable

import numpy as np

from autopeft.search.candidates import decoded
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

POOL = 64
"""Uniform draws of which the largest is where the search for one begins."""

MAX_STEPS = 200
"""Moves of one greedy walk."""


def dearest(space: SearchSpace, *, seed: int) -> Configuration | None:
    """A configuration that no one-exchange neighbour exceeds in trainable parameters; None of an empty space.

    Where every dimension may be at its largest, that is the one. Else, where constraints cut a corner off, steepest
    ascent from the largest of some draws.

    Cost: a neighbourhood a step, at most 200.
    """
    corner = decoded(space, np.ones(len(space.dimensions)))
    drawn = space.sample(np.random.default_rng([seed, 0xDEA2]), POOL)
    starts = [one for one in (corner, *drawn) if one is not None]
    return _ascended(space, max(starts, key=space.parameters), key=space.parameters) if starts else None


def _ascended(space: SearchSpace, start: Configuration, *, key: Callable[[Configuration], float]) -> Configuration:
    here, value = start, key(start)
    for _ in range(MAX_STEPS):
        near = space.neighbours(here)
        values = [key(one) for one in near]
        if not near or max(values) <= value:
            break
        value = max(values)
        here = near[values.index(value)]
    return here
