"""Stops trials that can no longer enter the front: dominated even where their curve is extended with optimism."""

from collections.abc import Sequence
from typing import final

import numpy as np

from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import COSTS, Knowledge, Objective
from autopeft.objectives.pareto import Array
from autopeft.search.scheduler import AbstractScheduler
from autopeft.search.trial import History, Pruning, Trial

MIN_CURVES = 8
"""Completed trials below which nothing is stopped: the next of n + 1 alike trials gains more than all before it with
probability 1 / (n + 1)."""


@final
class LearningCurveRule(AbstractScheduler):
    """Ends a trial that a completed one dominates although its learned objectives are given the best that may come.

    For each learned objective that is the larger of two gains: the largest that any completed trial made from this
    epoch to its end, and what the trial's own last step adds if it is repeated to the end (curves flatten, so that
    this is too much). Seconds grow in proportion to the epochs. Known objectives stand at their true values. What is
    stopped so is final: the front only rises.

    Args:
        objectives: Of the study.
        epochs: Of a full trial.
        minimum: The first epoch after which a trial may be stopped.
    """

    def __init__(self, objectives: Sequence[Objective], *, epochs: int, minimum: int = 1) -> None:
        self._objectives, self._epochs, self._minimum = tuple(objectives), epochs, minimum

    def judge(self, history: History, number: int, measurement: Measurement) -> Pruning | None:
        done = [trial for trial in history.completed if trial.number != number and trial.final is not None]
        if not self._minimum <= measurement.epoch < self._epochs or len(done) < MIN_CURVES:
            return None
        earlier = next((trial for trial in history if trial.number == number), None)
        best = self._optimistic(done, earlier.measurements if earlier else (), measurement)
        final = np.array([self._losses(trial.measurements[-1]) for trial in done])
        above = np.flatnonzero((final <= best).all(axis=1) & (final < best).any(axis=1))
        if not len(above):
            return None
        hoped = self._learned()[0] if self._learned() else 0
        value = self._objectives[hoped].from_loss(float(best[hoped]))
        because = (
            f"after epoch {measurement.epoch}: trial {done[int(above[0])].number} would dominate it even at"
            f" {self._objectives[hoped].name} {value:.4g}"
        )
        return Pruning(rung=measurement.epoch, because=because, final=True)

    def resumable(self, history: History) -> Sequence[int]:
        return ()

    def _learned(self) -> list[int]:
        """Places of the objectives that training moves and that no proportion tells."""
        return [
            index
            for index, one in enumerate(self._objectives)
            if one.knowledge is Knowledge.LEARNED and one.name != "train_seconds"
        ]

    def _optimistic(self, done: Sequence[Trial], before: Sequence[Measurement], now: Measurement) -> Array:
        """`[m]` losses that the trial may reach at the very best."""
        left, losses = self._epochs - now.epoch, self._losses(now)
        previous = next((row for row in reversed(before) if row.epoch == now.epoch - 1), None)
        best = losses.copy()
        for index, objective in enumerate(self._objectives):
            if objective.name == COSTS["train_seconds"].name:
                best[index] = losses[index] * self._epochs / now.epoch
        for index in self._learned():
            gains = [self._gain(trial, now.epoch, index) for trial in done]
            own = left * (self._losses(previous)[index] - losses[index]) if previous is not None else 0.0
            best[index] = losses[index] - max(0.0, own, *gains)
        return best

    def _gain(self, trial: Trial, epoch: int, index: int) -> float:
        then = trial.at(epoch)
        return 0.0 if then is None else float((self._losses(then) - self._losses(trial.measurements[-1]))[index])

    def _losses(self, measurement: Measurement) -> Array:
        return np.array([one.to_loss(measurement.value(one.name)) for one in self._objectives])
