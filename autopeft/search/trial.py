"""What a searcher sees of a study: trials, their states and what was measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from autopeft.objectives.measurement import Measurement
from autopeft.spaces.configuration import Configuration


class TrialState(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        return self is not TrialState.RUNNING


class FailureKind(StrEnum):
    OOM = "oom"
    DIVERGED = "diverged"
    TIMEOUT = "timeout"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """Why a trial was stopped before its last epoch."""

    rung: int
    """Epochs it had trained."""
    because: str
    final: bool
    """Whether it will never go on, whatever the trials after it show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration's life in a study. Finished trials never change, but for pruned ones that may go on."""

    number: int
    configuration: Configuration
    state: TrialState
    measurements: tuple[Measurement, ...] = ()
    """One for each epoch reported, ascending."""
    predicted: Mapping[str, float]
    """Known or predicted objectives at proposal time, e.g. `{"parameters": 1536, "memory": 1.2e8}`."""
    failure: Failure | None = None
    """Set exactly when `state` is FAILED."""
    pruning: Pruning | None = None
    """Set when `state` is PRUNED; None there too where nobody noted why."""
    resumed: bool = False
    """Whether it went on after it had been stopped early."""
    seconds: float = 0.0
    """Wall-clock seconds from start to end, as the driver saw them."""

    @property
    def final(self) -> Measurement | None:
        """The last measurement of a completed trial; None otherwise."""
        return self.measurements[-1] if self.state is TrialState.COMPLETED and self.measurements else None

    def at(self, epoch: int) -> Measurement | None:
        """What was measured at the end of that epoch; None where the trial did not get there."""
        return next((row for row in self.measurements if row.epoch == epoch), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All trials of a study, by number ascending."""

    trials: tuple[Trial, ...] = ()

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    def __len__(self) -> int:
        return len(self.trials)

    def in_state(self, *states: TrialState) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.state in states)

    @property
    def completed(self) -> tuple[Trial, ...]:
        return self.in_state(TrialState.COMPLETED)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of every configuration ever proposed, running and failed ones among them."""
        return frozenset(trial.configuration.id for trial in self.trials)
