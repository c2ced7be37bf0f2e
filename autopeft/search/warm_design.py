"""The first trials of a search that has past studies: what these expect most of, anywhere in its space."""

import logging
from collections.abc import Sequence

import numpy as np

from autopeft.objectives.reference import reference_point
from autopeft.search.belief import Belief, ordered
from autopeft.search.candidates import best_candidate
from autopeft.search.costs import carried_cost
from autopeft.search.dearest import dearest
from autopeft.search.searcher import SearchProblem
from autopeft.search.source_model import SourceModel
from autopeft.search.surrogate import SurrogateError
from autopeft.spaces.configuration import Configuration

_LOG = logging.getLogger(__name__)


def begun_from(
    problem: SearchProblem,
    sources: Sequence[SourceModel],
    *,
    n: int,
    among: Sequence[Configuration] | None = None,
) -> tuple[Configuration, ...]:
    """`n` configurations that gain most hypervolume, each by what one of the sources expects, these taking turns.

    A source is asked as if its task were this one and nothing had been tried but what was chosen before. So its own
    trials do not bound what is begun with: a better configuration that it did not try is found where its surrogate
    expects one. Gains are those of its means. What it is not sure of would make a noisy source ask twice for nearly the
    same, beside which there may always be something better.

    Args:
        problem: What is searched.
        sources: Models of past studies; without any the result is empty.
        n: Configurations; fewer come where there are not as many.
        among: What there is to choose from; None for the space.
    """
    largest = dearest(problem.space, seed=problem.seed) if sources else None
    beliefs = [_belief(problem, source, largest) for source in sources]
    rng = np.random.default_rng([problem.seed, 0xF205])
    chosen: list[Configuration] = []
    while beliefs and len(chosen) < n:
        turn = len(chosen) % len(sources)
        found = _best(problem, beliefs[turn], sources[turn], chosen, among, rng)
        if found is None:
            break
        chosen.append(found)
        try:
            beliefs = [one.fantasise([found]) for one in beliefs]
        except SurrogateError as error:
            _LOG.info("the sources tell of no more than %d to begin with: %s", len(chosen), error)
            break
    return tuple(chosen)


def _belief(problem: SearchProblem, source: SourceModel, largest: Configuration | None) -> Belief:
    """What `source` says of this study's objectives, nothing being evaluated."""
    space, past = problem.space, source.past
    objectives = ordered(problem.objectives)
    costs = tuple(carried_cost(space, one, past, place, seed=problem.seed) for place, one in enumerate(objectives[1:]))
    rows = np.flatnonzero(past.observed) if any(past.observed) else np.arange(len(past.configurations))
    there = [*(past.configurations[row] for row in rows), *([largest] if largest else [])]
    features = np.array([space.features(one) for one in there])
    metric = np.append(source.seen[rows], [source.seen[rows].max()] * (len(there) - len(rows)))
    losses = np.column_stack([metric, *(cost.losses(there, features) for cost in costs)])
    origin = losses.min(axis=0)
    return Belief(
        space=space,
        process=source.process,
        costs=costs,
        losses=np.empty((0, len(objectives))),
        origin=origin,
        scale=reference_point(losses, objectives) - origin,
        evaluated=(),
    )


def _best(
    problem: SearchProblem,
    belief: Belief,
    source: SourceModel,
    chosen: Sequence[Configuration],
    among: Sequence[Configuration] | None,
    rng: np.random.Generator,
) -> Configuration | None:
    score, excluded = belief.improvement(certain=True), set(chosen)
    if among is None:
        return best_candidate(problem.space, score, parents=source.past.configurations, excluded=excluded, rng=rng)
    left = [one for one in among if one not in excluded]
    return left[int(np.argmax(score(left)))] if left else None
