"""What a history says about the objectives: losses of completed trials, and outcomes a surrogate can learn from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.objectives.front import Front, FrontPoint
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective
from autopeft.objectives.pareto import Array
from autopeft.objectives.reference import outlier_limit
from autopeft.search.trial import FailureKind, History, Trial, TrialState
from autopeft.spaces.configuration import Configuration

CENSORED = (FailureKind.DIVERGED, FailureKind.OOM)
"""Failures that the configuration caused and that would happen again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Losses of one objective, by configuration."""

    configurations: tuple[Configuration, ...]
    losses: Array
    """`[n]`."""
    observed: tuple[bool, ...]
    """Whether each was measured on a completed trial."""

    def __len__(self) -> int:
        return len(self.configurations)


def front_points(history: History, objectives: Sequence[Objective]) -> list[FrontPoint]:
    """Completed trials whose every objective was measured and is finite, by number."""
    points: list[FrontPoint] = []
    for trial in history.completed:
        values = _values(trial.final, objectives)
        if values is not None and trial.final is not None:
            points.append(
                FrontPoint(
                    trial=trial.number,
                    values=values,
                    configuration=trial.configuration,
                    measurement=trial.final,
                )
            )
    return points


def front_of(history: History, objectives: Sequence[Objective]) -> Front:
    """The Pareto front of a study's completed trials."""
    return Front.of(front_points(history, objectives), objectives)


def outcomes(history: History, objective: Objective) -> Outcomes:
    """What a surrogate of `objective` learns from.

    Completed trials count with their final value, pruned ones with their last and what trials gain from there to their
    end (`expected_gain`). A trial that diverged or ran out of
    memory counts as the worst loss seen: censored, so that its region is avoided and not forgotten. Crashes and
    timeouts say nothing about the configuration and are left out. Losses beyond `outlier_limit` are set to it.
    """
    rows = [(trial, _loss(trial, objective)) for trial in history]
    known = [(trial, loss - _still_to_gain(trial, history, objective)) for trial, loss in rows if loss is not None]
    losses = np.array([loss for _, loss in known])
    losses = np.minimum(losses, outlier_limit(losses, objective))
    failed = [trial for trial in history if trial.failure is not None and trial.failure.kind in CENSORED]
    censored = failed if len(losses) else []
    worst = [float(losses.max())] * len(censored) if censored else []
    return Outcomes(
        configurations=tuple(trial.configuration for trial in (*(trial for trial, _ in known), *censored)),
        losses=np.concatenate([losses, worst]),
        observed=tuple(trial.state is TrialState.COMPLETED for trial, _ in known) + (False,) * len(censored),
    )


def expected_gain(history: History, objective: Objective, epoch: int) -> float:
    """By how much the loss of completed trials fell from `epoch` to their end, on average; 0 where none has both."""
    rows = [(loss_at(trial, objective, epoch), _loss(trial, objective)) for trial in history.completed]
    gains = [then - last for then, last in rows if then is not None and last is not None]
    return float(np.mean(gains)) if gains else 0.0


def loss_at(trial: Trial, objective: Objective, epoch: int) -> float | None:
    """The loss that a trial had after that epoch; None where it was not measured or is not finite."""
    values = _values(trial.at(epoch), (objective,))
    return None if values is None else objective.to_loss(values[objective.name])


def _still_to_gain(trial: Trial, history: History, objective: Objective) -> float:
    if trial.state is not TrialState.PRUNED:
        return 0.0
    return expected_gain(history, objective, trial.measurements[-1].epoch)


def _loss(trial: Trial, objective: Objective) -> float | None:
    if trial.state not in (TrialState.COMPLETED, TrialState.PRUNED) or not trial.measurements:
        return None
    values = _values(trial.measurements[-1], (objective,))
    return None if values is None else objective.to_loss(values[objective.name])


def _values(measurement: Measurement | None, objectives: Sequence[Objective]) -> dict[str, float] | None:
    if measurement is None:
        return None
    try:
        values = {objective.name: measurement.value(objective.name) for objective in objectives}
    except KeyError:
        return None
    return values if all(math.isfinite(value) for value in values.values()) else None
