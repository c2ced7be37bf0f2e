"""Bayesian search: a Gaussian process for the task metric, known costs as they are, closed-form improvement."""

import logging
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import final

import numpy as np

from autopeft.search.belief import Belief
from autopeft.search.candidates import best_candidate
from autopeft.search.dearest import dearest
from autopeft.search.initial_design import DESIGN, POOL, initial_design
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.source_model import SourceModel, source_models
from autopeft.search.surrogate import SurrogateError, one_thread
from autopeft.search.trial import History, TrialState
from autopeft.search.unseen import draw_unseen
from autopeft.spaces.configuration import Configuration

_LOG = logging.getLogger(__name__)

STOPPED_TOLD = 3
"""Trials that were stopped early, which tell the first model as much as one that ended."""

Among = Callable[[History], Sequence[Configuration]]
"""The configurations that there are to choose from after a history."""


@final
class BayesianSearcher(AbstractSearcher):
    """An initial design, then the configurations of largest expected hypervolume improvement.

    Several at once are chosen one after another, each as if those before it (and all running trials) had come out
    as expected. Where no surrogate can be fitted the design goes on, and the log says why.

    Args:
        problem: What is searched.
        among: After a history, the configurations that may still be proposed, where not the whole space is there to
            choose from; every one of them is looked at. None for the space.
    """

    def __init__(self, problem: SearchProblem, among: Among | None = None) -> None:
        self._problem, self._among = problem, among
        self._design: tuple[Configuration, ...] = ()
        self._sources: tuple[SourceModel, ...] | None = None

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        """What is left of the design, then model-based proposals; see `AbstractSearcher.ask`."""
        rng = np.random.default_rng([self._problem.seed, len(history)])
        chosen = self._designed(history, min(n, max(0, DESIGN - _told(history))))
        if len(chosen) < n:
            with one_thread():
                chosen += self._modelled(history, chosen, n - len(chosen), rng=rng)
        if len(chosen) < n:
            chosen += self._designed(history, n - len(chosen), but=chosen)
        seen = history.ids | {one.id for one in chosen}
        return [*chosen, *draw_unseen(self._problem.space, rng, n - len(chosen), seen=seen)]

    def foreseen(self, history: History) -> int:
        """What is left of the design."""
        return max(0, DESIGN - _told(history))

    def _designed(self, history: History, n: int, *, but: Sequence[Configuration] = ()) -> list[Configuration]:
        """The next `n` of the design that were not tried and are none of `but`."""
        if n <= 0:
            return []
        wanted = len(history) + len(but) + n
        if min(wanted, POOL) > len(self._design):
            with one_thread():
                self._design = initial_design(self._problem, self._known(), size=2 * wanted, among=self._from)
        return [one for one in self._design if one.id not in history.ids and one not in but][:n]

    @cached_property
    def _from(self) -> Sequence[Configuration] | None:
        """What there was to choose from at the beginning, which a design must not lose as it is used."""
        return None if self._among is None else tuple(self._among(History()))

    @cached_property
    def _largest(self) -> Configuration | None:
        return dearest(self._problem.space, seed=self._problem.seed)

    def _known(self) -> tuple[SourceModel, ...]:
        """Models of the past studies, fitted at the first call."""
        if self._sources is None:
            with one_thread():
                self._sources = source_models(self._problem.past, self._problem.space, seed=self._problem.seed)
        return self._sources

    def _modelled(
        self, history: History, pending: Sequence[Configuration], n: int, *, rng: np.random.Generator
    ) -> list[Configuration]:
        chosen: list[Configuration] = []
        excluded = {trial.configuration for trial in history} | set(pending)
        try:
            belief = Belief.of(self._problem, history, sources=self._known(), largest=self._largest)
            belief = belief.fantasise(pending)
            while len(chosen) < n:
                found = self._best(belief, history, excluded, rng)
                if found is None:
                    break
                chosen.append(found)
                excluded.add(found)
                belief = belief.fantasise([found]) if len(chosen) < n else belief
        except SurrogateError as error:
            _LOG.info("going on with the first design: %s", error)
        return chosen

    def _best(
        self, belief: Belief, history: History, excluded: AbstractSet[Configuration], rng: np.random.Generator
    ) -> Configuration | None:
        score = belief.improvement()
        if self._among is None:
            return best_candidate(self._problem.space, score, parents=belief.front, excluded=excluded, rng=rng)
        left = [one for one in self._among(history) if one not in excluded]
        return left[int(np.argmax(score(left)))] if left else None


def _told(history: History) -> int:
    """Trials that count towards the first design: whole ones, and of those that were stopped one in three."""
    stopped = len(history.in_state(TrialState.PRUNED))
    return len(history) - stopped + stopped // STOPPED_TOLD
