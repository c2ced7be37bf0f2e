"""The first configurations of a study: the range of costs, each method alone, then whatever is furthest from those."""

from collections.abc import Callable, Sequence

import numpy as np

from autopeft.objectives.parameters import count_parameters
from autopeft.objectives.pareto import Array
from autopeft.search.searcher import SearchProblem
from autopeft.search.source_model import SourceModel
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.layer_prior import weighted_sample
from autopeft.spaces.space import SearchSpace

POOL = 256
"""Draws that the design chooses from: uniform, or by `SearchProblem.layer_weights`."""

FROM_SOURCES = 0.6
"""Share of the design that comes from the fronts of past studies, where there are any: 4 to 6 trials."""

MAX_STEPS = 200
"""Moves of one greedy walk."""


def design_size(problem: SearchProblem) -> int:
    """Trials before the first suggestion by model: a quarter of the budget, at least 6, at most 4 + 2 an objective.

    Not half the budget: the surrogate's own uncertainty explores from then on.
    """
    return max(6, min(2 * len(problem.objectives) + 4, problem.n_trials // 4))


def initial_design(problem: SearchProblem, sources: Sequence[SourceModel] = ()) -> tuple[Configuration, ...]:
    """The configurations to try first, in order, distinct and valid; fewer in a space that has fewer.

    What `sources` had on their fronts, for up to 0.6 of the design (`begun_from`); smallest, largest and (by the
    logarithm) middle number of parameters, so that the costs' range is known and the reference point settles; each
    method alone at a middle size; then the pool member furthest, in the surrogate's features, from all chosen.

    Cost: a few hundred neighbourhoods, paid once a study.
    """
    space, size = problem.space, design_size(problem)
    rng = np.random.default_rng([problem.seed, 0xDE51])
    weights = problem.layer_weights
    drawn = weighted_sample(space, weights, rng, POOL) if weights else space.sample(rng, POOL)
    pool = list({one.id: one for one in drawn}.values())
    if not pool:
        return ()
    counts = [space.parameters(one) for one in pool]
    middle = _middle(space, pool, min(counts), max(counts))
    alone = _methods_alone(space, pool, middle)
    lows = [_walk(space, one, key=space.parameters) for one in (pool[int(np.argmin(counts))], *alone)]
    smallest = min(lows, key=space.parameters)
    largest = _walk(space, pool[int(np.argmax(counts))], key=lambda one: -space.parameters(one))
    middle = _middle(space, pool, space.parameters(smallest), space.parameters(largest))
    begun = begun_from(sources, n=round(FROM_SOURCES * size))
    chosen = {one.id: one for one in (*begun, middle, smallest, largest, *alone)}
    chosen = dict(list(chosen.items())[:size])
    _fill(space, chosen, pool, size=size)
    return tuple(chosen.values())


def begun_from(sources: Sequence[SourceModel], *, n: int) -> tuple[Configuration, ...]:
    """`n` configurations of the sources' fronts, or as many as there are: a point of each source in turn."""
    fronts = [source.front(n) for source in sources]
    turns = [front[place] for place in range(n) for front in fronts if place < len(front)]
    return tuple(dict.fromkeys(turns))[:n]


def _walk(space: SearchSpace, start: Configuration, *, key: Callable[[Configuration], float]) -> Configuration:
    """Steepest descent of `key` over one-exchange neighbours."""
    here, value = start, key(start)
    for _ in range(MAX_STEPS):
        near = space.neighbours(here)
        values = [key(one) for one in near]
        if not near or min(values) >= value:
            break
        value = min(values)
        here = near[values.index(value)]
    return here


def _middle(space: SearchSpace, pool: Sequence[Configuration], low: int, high: int) -> Configuration:
    """The pool member whose parameters are closest to the geometric mean of `low` and `high`."""
    target = (np.log1p(low) + np.log1p(high)) / 2
    distances = [abs(float(np.log1p(space.parameters(one))) - target) for one in pool]
    return pool[int(np.argmin(distances))]


def _methods_alone(space: SearchSpace, pool: Sequence[Configuration], middle: Configuration) -> list[Configuration]:
    """For each method seen in the pool, a configuration that has no other; none where the space has no such one."""
    names = sorted({setting.method for one in pool for setting in one})
    if len(names) < 2:
        return []
    found: list[Configuration] = []
    for name in names:
        alone = [one for one in pool if _others(space, one, name) == 0]
        if alone:
            found.append(_middle(space, alone, *_range(space, alone)))
            continue
        start = middle if middle.method(name) else next(one for one in pool if one.method(name))
        end = _walk(space, start, key=lambda one, name=name: _others(space, one, name))
        found += [end] if _others(space, end, name) == 0 else []
    return found


def _others(space: SearchSpace, configuration: Configuration, name: str) -> float:
    """Parameters of methods other than `name`; infinite when `name` is absent."""
    if configuration.method(name) is None:
        return float("inf")
    by_method = count_parameters(configuration, space.shape).by_method
    return float(sum(count for method, count in by_method.items() if method != name))


def _range(space: SearchSpace, configurations: Sequence[Configuration]) -> tuple[int, int]:
    counts = [space.parameters(one) for one in configurations]
    return min(counts), max(counts)


def _fill(space: SearchSpace, chosen: dict[str, Configuration], pool: Sequence[Configuration], *, size: int) -> None:
    """Add pool members to `chosen` until it has `size`, each the furthest in features from all before it."""
    rest = [one for one in pool if one.id not in chosen]
    if not rest:
        return
    points = np.array([space.features(one) for one in rest])
    nearest = np.full(len(rest), np.inf)
    for one in chosen.values():
        nearest = np.minimum(nearest, _distances(points, space.features(one)))
    while len(chosen) < size and nearest.max() > 0:
        index = int(np.argmax(nearest))
        chosen[rest[index].id] = rest[index]
        nearest = np.minimum(nearest, _distances(points, points[index]))


def _distances(points: Array, point: Array) -> Array:
    return np.sqrt(((points - point) ** 2).sum(axis=1))
