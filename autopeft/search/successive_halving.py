"""Asynchronous successive halving for several objectives: at each rung the best 1/eta by rank and crowding go on.

Source: Li et al. 2020, "A system for massively parallel hyperparameter tuning" (ASHA, algorithm 2), with the order of
NSGA-II (Deb et al. 2002) in place of one score, as in Schmucker et al. 2021 (MO-ASHA, arXiv 2106.12639).
"""

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np

from autopeft.errors import SpecError
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective
from autopeft.objectives.pareto import Array, crowding_distance, non_dominated_ranks
from autopeft.search.learning_curve import LearningCurveRule
from autopeft.search.scheduler import AbstractScheduler
from autopeft.search.trial import History, Pruning, TrialState


@final
class SuccessiveHalving(AbstractScheduler):
    """Lets a trial pass a rung while it is in the best 1/eta of what has reached that rung so far.

    Nobody waits: the first to reach a rung pass it, later ones are held against all before. A trial that is stopped
    at a rung goes on as soon as those after it have made enough room for it. Trials that failed are in no rung.

    Args:
        objectives: Of the study; known ones count at their true values, which do not change in training.
        rungs: Epochs, ascending, below the full budget.
        eta: Of the trials at a rung, one in `eta` goes on.
        curves: Stops trials between rungs, too, that can no longer enter the front.

    Raises:
        SpecError: No rung, rungs that do not ascend from 1, or eta below 2.
    """

    resumes: ClassVar[bool] = True

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        rungs: Sequence[int],
        eta: int,
        curves: LearningCurveRule | None = None,
    ) -> None:
        if not rungs or list(rungs) != sorted(set(rungs)) or rungs[0] < 1:
            raise SpecError(f"rungs: got {list(rungs)}; epochs of 1 or more, ascending, at least one")
        if eta < 2:
            raise SpecError(f"eta: got {eta}; 2 or more")
        self._objectives, self._rungs, self._eta, self._curves = tuple(objectives), tuple(rungs), eta, curves

    def judge(self, history: History, number: int, measurement: Measurement) -> Pruning | None:
        stopped = self._curves.judge(history, number, measurement) if self._curves is not None else None
        if stopped is not None or measurement.epoch not in self._rungs:
            return stopped
        rows = [row for row in _at_rung(history, measurement.epoch) if row[0] != number]
        place, room = self._order([*rows, (number, measurement)]).index(number), self._room(len(rows) + 1)
        if place < room:
            return None
        go = "the best goes on" if room == 1 else f"the best {room} go on"
        because = f"after epoch {measurement.epoch}: place {place + 1} of {len(rows) + 1}, {go}"
        return Pruning(rung=measurement.epoch, because=because, final=False)

    def resumable(self, history: History) -> Sequence[int]:
        """From the highest rung down, and at each the best first."""
        found: list[int] = []
        trials = {trial.number: trial for trial in history}
        for rung in reversed(self._rungs):
            rows = _at_rung(history, rung)
            for number in self._order(rows)[: self._room(len(rows))]:
                pruning = trials[number].pruning
                paused = trials[number].state is TrialState.PRUNED and pruning is not None and not pruning.final
                if paused and trials[number].measurements[-1].epoch == rung:
                    found.append(number)
        return found

    def _room(self, n: int) -> int:
        """How many of `n` trials at a rung go on; a study of few trials needs the rounding up."""
        return -(-n // self._eta)

    def _order(self, rows: Sequence[tuple[int, Measurement]]) -> list[int]:
        """Trial numbers, best first: by non-dominated rank, then crowding within the rank, then the earlier trial."""
        if not rows:
            return []
        losses = np.array([[one.to_loss(row.value(one.name)) for one in self._objectives] for _, row in rows])
        ranks, crowding = _ranked(losses)
        keys = [(int(ranks[index]), -float(crowding[index]), number) for index, (number, _) in enumerate(rows)]
        return [number for *_, number in sorted(keys)]


def rungs_of(*, minimum: int, reduction: int, epochs: int) -> tuple[int, ...]:
    """`minimum`, times `reduction`, times it again, ... as far as that is below `epochs`."""
    rungs: list[int] = []
    rung = minimum
    while rung < epochs:
        rungs.append(rung)
        rung *= reduction
    return tuple(rungs)


def _at_rung(history: History, rung: int) -> list[tuple[int, Measurement]]:
    """(trial, what it measured at that rung) of those that got there and did not fail, by number."""
    rows = [(trial.number, trial.at(rung)) for trial in history if trial.state is not TrialState.FAILED]
    return [(number, row) for number, row in rows if row is not None]


def _ranked(losses: Array) -> tuple[np.ndarray, Array]:
    """`[n]` ranks and `[n]` crowding distances, each within its rank."""
    ranks = non_dominated_ranks(losses)
    crowding = np.empty(len(losses))
    for rank in np.unique(ranks):
        members = ranks == rank
        crowding[members] = crowding_distance(losses[members])
    return ranks, crowding
