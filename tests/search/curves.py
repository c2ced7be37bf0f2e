"""Histories of trials whose measurements at every epoch are given."""

from collections.abc import Sequence

import numpy as np

from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective, resolve_objectives
from autopeft.search.scheduler import AbstractScheduler
from autopeft.search.trial import Failure, FailureKind, History, Pruning, Trial, TrialState
from tests.search.support import space_of

OBJECTIVES: tuple[Objective, ...] = resolve_objectives(("accuracy", "parameters"), metric="accuracy")
CONFIGURATIONS = space_of("mixed").sample(np.random.default_rng(0), 60)


def row(epoch: int, accuracy: float, parameters: int) -> Measurement:
    return Measurement(
        epoch=epoch,
        metrics={"accuracy": accuracy},
        train_loss=1.0 - accuracy,
        train_seconds=float(epoch),
        evaluation_seconds=0.1,
        tokens=100 * epoch,
        peak_bytes=1000 * parameters,
        parameters=parameters,
    )


def trial(
    number: int,
    accuracies: Sequence[float],
    parameters: int = 10,
    *,
    state: TrialState = TrialState.RUNNING,
    pruning: Pruning | None = None,
) -> Trial:
    """A trial with these accuracies after its epochs so far."""
    failure = Failure(kind=FailureKind.CRASHED, message="on purpose") if state is TrialState.FAILED else None
    return Trial(
        number=number,
        configuration=CONFIGURATIONS[number],
        state=state,
        measurements=tuple(row(epoch, value, parameters) for epoch, value in enumerate(accuracies, 1)),
        predicted={"parameters": float(parameters)},
        failure=failure,
        pruning=pruning,
    )


def played(
    scheduler: AbstractScheduler, curves: Sequence[Sequence[float]], parameters: Sequence[int], *, promote: bool = False
) -> History:
    """What becomes of trials with these whole curves, one after the other, under a scheduler.

    Args:
        scheduler: Asked after every epoch but the last.
        curves: Accuracy after every epoch.
        parameters: Of each trial.
        promote: Whether stopped trials that may go on do so before the next new one.
    """
    trials: dict[int, Trial] = {}
    for number in range(len(curves)):
        trials[number] = trial(number, (), parameters[number])
        _train(scheduler, trials, number, curves[number])
        while promote and (again := scheduler.resumable(_history(trials))):
            trials[again[0]] = trial(again[0], _seen(trials[again[0]]), parameters[again[0]])
            _train(scheduler, trials, again[0], curves[again[0]])
    return _history(trials)


def _train(scheduler: AbstractScheduler, trials: dict[int, Trial], number: int, curve: Sequence[float]) -> None:
    parameters = int(trials[number].predicted["parameters"])
    for epoch in range(len(trials[number].measurements) + 1, len(curve) + 1):
        new = row(epoch, curve[epoch - 1], parameters)
        pruning = scheduler.judge(_history(trials), number, new) if epoch < len(curve) else None
        state = TrialState.COMPLETED if epoch == len(curve) else TrialState.PRUNED if pruning else TrialState.RUNNING
        trials[number] = trial(number, curve[:epoch], parameters, state=state, pruning=pruning)
        if pruning:
            return


def _seen(one: Trial) -> list[float]:
    return [measured.metrics["accuracy"] for measured in one.measurements]


def _history(trials: dict[int, Trial]) -> History:
    return History(trials=tuple(trials[number] for number in sorted(trials)))
