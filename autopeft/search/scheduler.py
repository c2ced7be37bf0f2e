"""Which trials train on: a scheduler is asked after every epoch of a trial, and for stopped ones that may go on.

A scheduler is a pure function of history, trial number and measurement. It knows nothing of jobs, so that it serves
trials that train alone and several in one job alike, and a study that is resumed decides as it would have.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

from autopeft.objectives.measurement import Measurement
from autopeft.search.trial import History, Pruning


class AbstractScheduler(ABC):
    """Decides after each epoch whether a trial trains on."""

    resumes: ClassVar[bool] = False
    """Whether a trial that was stopped may go on, so that its state is worth keeping."""

    @abstractmethod
    def judge(self, history: History, number: int, measurement: Measurement) -> Pruning | None:
        """Why trial `number` is to stop now; None: it trains on.

        Args:
            history: All trials as they were before `measurement`, the trial itself among them.
            number: The trial.
            measurement: Of the epoch that it has just finished; every objective is measured and finite.
        """

    @abstractmethod
    def resumable(self, history: History) -> Sequence[int]:
        """Numbers of pruned trials that are to train on after all, the first of them first."""


@final
class RunAll(AbstractScheduler):
    """Every trial trains to its last epoch."""

    def judge(self, history: History, number: int, measurement: Measurement) -> Pruning | None:
        return None

    def resumable(self, history: History) -> Sequence[int]:
        return ()
