"""The first configurations of a study: spread evenly over learning rates and sizes, what a metric answers to first."""

from collections.abc import Iterator, Sequence

import numpy as np

from autopeft.objectives.objective import Knowledge
from autopeft.objectives.pareto import Array
from autopeft.search.searcher import SearchProblem
from autopeft.search.shrunk import shrunk
from autopeft.search.source_model import SourceModel
from autopeft.search.warm_design import begun_from
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.layer_prior import weighted_sample

POOL = 256
"""Draws that the design chooses from: uniform, or by `SearchProblem.layer_weights`."""

DESIGN = 4
"""Trials before the first suggestion by model.

As few as it can learn from, for it knows beforehand what to expect of rates and sizes, and its own uncertainty explores
from then on.
"""

FROM_SOURCES = 2
"""Of these, how many are what past studies expect most of, where there are any."""

DEAREST = 0.75
"""Share of the pool beyond which sizes are left to the model, where a known cost is an objective: they leave little of
the cost box, and can add as little volume."""

MARGIN = 0.1
"""Of a learning rate's range that the design leaves out at either end: whoever gives a range means its middle."""

SHORT = 1.0
"""Length-scale below which the metric is sure to answer to a feature (`SearchSpace.lengthscales`)."""


def initial_design(
    problem: SearchProblem,
    sources: Sequence[SourceModel] = (),
    *,
    size: int = DESIGN,
    among: Sequence[Configuration] | None = None,
) -> tuple[Configuration, ...]:
    """The configurations to try first, in order, distinct and valid; fewer in a space that has fewer.

    Two that `sources` expect most of (`begun_from`). Then draws of the space, one near every point of an even sequence
    over the learning rates and the logarithm of the parameters: of few points each has a rate and a size of its own,
    while layers and kinds are as drawn. Where the sources mislead, these show it.

    Args:
        problem: What is searched.
        sources: Models of past studies.
        size: Configurations; a longer design begins with a shorter one.
        among: What there is to choose from; None for draws of the space.
    """
    begun = begun_from(problem, sources, n=min(FROM_SOURCES, size), among=among)
    chosen = {one.id: one for one in begun}
    for one in _spread(problem, among):
        if len(chosen) == size:
            break
        chosen.setdefault(one.id, one)
    return tuple(chosen.values())


def _spread(problem: SearchProblem, among: Sequence[Configuration] | None) -> Iterator[Configuration]:
    """Of `among`, or of draws, each the nearest that is left to a point of the sequence; draws that are larger than it
    shrink.
    """
    pool, space = _pool(problem) if among is None else among, problem.space
    if not pool:
        return
    rng = np.random.default_rng([problem.seed, 0x5A11])
    points, low, high = _coordinates(problem, pool)
    bounds = space.parameter_bounds
    left = np.ones(len(pool), dtype=bool)
    for target in low + (high - low) * _sequence(points.shape[1], n=len(pool), seed=problem.seed):
        distances = ((points - target) ** 2).sum(axis=1)
        place = int(np.argmin(np.where(left, distances, np.inf)))
        left[place] = False
        size = bounds[0] * (bounds[1] / bounds[0]) ** (target[-1] * space.lengthscales[-1])
        larger = among is None and space.parameters(pool[place]) > size
        yield shrunk(space, pool[place], size, rng) if larger else pool[place]


def _pool(problem: SearchProblem) -> list[Configuration]:
    rng = np.random.default_rng([problem.seed, 0xDE51])
    weights, space = problem.layer_weights, problem.space
    drawn = weighted_sample(space, weights, rng, POOL) if weights else space.sample(rng, POOL)
    return list({one.id: one for one in drawn}.values())


def _coordinates(problem: SearchProblem, pool: Sequence[Configuration]) -> tuple[Array, Array, Array]:
    """`[p, d]` rates and size of the pool in their length-scales, and the `[d]` ends of what the design covers."""
    scales = problem.space.lengthscales
    chosen = [*(place for place, scale in enumerate(scales[:-1]) if scale < SHORT), len(scales) - 1]
    points = np.array([problem.space.features(one)[chosen] for one in pool])
    known = any(objective.knowledge is not Knowledge.LEARNED for objective in problem.objectives)
    low, high = np.full(len(chosen), MARGIN), np.full(len(chosen), 1.0 - MARGIN)
    low[-1], high[-1] = 0.0, np.quantile(points[:, -1], DEAREST if known else 1.0)
    return points / scales[chosen], low / scales[chosen], high / scales[chosen]


def _sequence(d: int, *, n: int, seed: int) -> Array:
    """`[n, d]` points in [0, 1], the first few of which are evenly spread already in every dimension.

    An additive recurrence: multiples, modulo 1, of powers of the root of x^(d + 1) = x + 1, from a place that the seed
    draws. Of four points a scrambled Sobol sequence has one in each quarter, anywhere in it; these are a quarter apart.

    Source: Roberts 2018, "The Unreasonable Effectiveness of Quasirandom Sequences".
    """
    root = 2.0
    for _ in range(40):
        root = (1.0 + root) ** (1.0 / (d + 1))
    steps = root ** -np.arange(1.0, d + 1)
    start = np.random.default_rng([seed, 0x50B0]).random(d)
    return (start + np.outer(np.arange(n), steps)) % 1.0
