"""The one interface of every search engine."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopeft.objectives.objective import Objective
from autopeft.search.past_study import PastStudy
from autopeft.search.trial import History
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProblem:
    """What is searched, for which objectives, from which seed."""

    space: SearchSpace
    objectives: tuple[Objective, ...]
    seed: int
    n_trials: int
    """Trials the study may spend in all."""
    layer_weights: Mapping[int, float] = field(default_factory=dict)
    """Chance in (0, 1) that the first configurations adapt each layer, learnt elsewhere; empty for no preference."""
    past: tuple[PastStudy, ...] = ()
    """Studies that came before, whose trials it begins from."""


class AbstractSearcher(ABC):
    """Chooses configurations; a pure function of problem and history, so that resume is replay."""

    @abstractmethod
    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        """Up to `n` configurations to try next, distinct, valid and never in `history`.

        Deterministic in (problem, history). Fewer than `n` only when the space is exhausted; none then ends the study.
        """

    def foreseen(self, history: History) -> int:
        """How many of the next proposals do not depend on what any trial comes to; they may be asked for ahead."""
        return 0
