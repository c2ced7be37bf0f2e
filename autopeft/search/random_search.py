"""Random search: uniform over the distinct valid configurations of the space, each at most once."""

from collections.abc import Sequence
from typing import final

import numpy as np

from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.trial import History
from autopeft.search.unseen import draw_unseen
from autopeft.spaces.configuration import Configuration


@final
class RandomSearcher(AbstractSearcher):
    """Uniform draws without replacement."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        """Draws that depend on the seed and on how many trials there are; see `AbstractSearcher.ask`."""
        rng = np.random.default_rng([self._problem.seed, len(history)])
        return draw_unseen(self._problem.space, rng, n, seen=history.ids)

    def foreseen(self, history: History) -> int:
        return max(0, self._problem.n_trials - len(history))
