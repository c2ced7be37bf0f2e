"""Sobol search: a scrambled low-discrepancy sequence over the dimensions of the space."""

from collections.abc import Iterator, Sequence
from typing import final

import numpy as np

from autopeft.objectives.pareto import Array
from autopeft.search.candidates import decoded
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.trial import History
from autopeft.search.unseen import draw_unseen
from autopeft.spaces.configuration import Configuration

MAX_POINTS = 8192
"""Points of the sequence that one call may look at before it draws at random."""

_BLOCK = 64


@final
class SobolSearcher(AbstractSearcher):
    """The points of one Owen-scrambled Sobol sequence, decoded; points that are invalid or seen are passed over.

    Every trial took at least one point, so a call with k trials in the history goes on at point k and passes over
    those already proposed. It fills the dimensions evenly, which on a space with conditional dimensions is not the
    same as uniform over distinct configurations.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        """The next points that are valid and new, then uniform draws; see `AbstractSearcher.ask`."""
        space = self._problem.space
        seen = set(history.ids)
        chosen: list[Configuration] = []
        for vector in _points(len(space.dimensions), seed=self._problem.seed, start=len(history)):
            if len(chosen) == n:
                break
            configuration = decoded(space, vector)
            if configuration is not None and configuration.id not in seen:
                seen.add(configuration.id)
                chosen.append(configuration)
        rng = np.random.default_rng([self._problem.seed, len(history)])
        return [*chosen, *draw_unseen(space, rng, n - len(chosen), seen=seen)]

    def foreseen(self, history: History) -> int:
        return max(0, self._problem.n_trials - len(history))


def _points(dimensions: int, *, seed: int, start: int) -> Iterator[Array]:
    from scipy.stats import qmc

    if not dimensions:
        return
    engine = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    if start:
        engine.fast_forward(start)
    for _ in range(MAX_POINTS // _BLOCK):
        yield from engine.random(_BLOCK)
