"""Configurations that were never proposed, down to the last one of a small space."""

from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

STALE_DRAWS = 512
"""Uniform draws in a row that may all have been seen before before rejection gives up."""

MAX_LISTED = 20_000
"""Most configurations of a space that is gone through one by one."""

MAX_VISITED = 20_000
"""Most configurations that the walk over neighbours visits."""


def draw_unseen(space: SearchSpace, rng: np.random.Generator, n: int, *, seen: AbstractSet[str]) -> list[Configuration]:
    """Up to `n` distinct valid configurations whose ids are not in `seen`, uniformly where that is possible.

    Uniform draws, rejected when seen. When hundreds in a row were, nearly everything has been proposed: what is left
    is found by going through the whole space, or where that is too large by walking from neighbour to neighbour, and
    drawn from without replacement. So it ends, and in a small space fewer than `n` means that no other exists.

    Cost: O(n) draws while the space has room; O(configurations), at most `MAX_LISTED`, once it has not.
    """
    taken = set(seen)
    chosen: list[Configuration] = []
    stale = 0
    while len(chosen) < n and stale < STALE_DRAWS:
        for configuration in space.sample(rng, max(2 * (n - len(chosen)), 16)):
            if len(chosen) < n and configuration.id not in taken:
                taken.add(configuration.id)
                chosen.append(configuration)
                stale = 0
            else:
                stale += 1
    if len(chosen) < n:
        left = _remaining(space, rng, taken)
        chosen += [left[index] for index in rng.permutation(len(left))[: n - len(chosen)]]
    return chosen


def _remaining(space: SearchSpace, rng: np.random.Generator, taken: AbstractSet[str]) -> list[Configuration]:
    """Valid configurations not in `taken`: all of them in a small space, else those that a walk finds."""
    size = space.size()
    if not size.continuous and size.configurations <= MAX_LISTED:
        found = space.configurations()
    else:
        found = _reachable(space, space.sample(rng, 64))
    return list({one.id: one for one in found if one.id not in taken}.values())


def _reachable(space: SearchSpace, starts: Sequence[Configuration]) -> Iterator[Configuration]:
    """Breadth-first over one-exchange neighbours; at most `MAX_VISITED` configurations."""
    queue = deque(starts)
    visited = {configuration.id for configuration in starts}
    while queue:
        configuration = queue.popleft()
        yield configuration
        for neighbour in space.neighbours(configuration):
            if len(visited) < MAX_VISITED and neighbour.id not in visited:
                visited.add(neighbour.id)
                queue.append(neighbour)
