"""What happens in a running study, told to listeners: progress display, tracking mirror, artifacts.

A listener is called on the driver, one event at a time, in the order in which things became durable in the storage;
it must be quick. What it raises is turned into a `Noted` event and never stops the search.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective
from autopeft.search.trial import History, Trial


class StopReason(StrEnum):
    """Why a run of a study ended."""

    BUDGET = "budget"
    """As many trials as were asked for have finished."""
    EXHAUSTED = "exhausted"
    """The searcher has nothing new: every configuration of the space was tried."""
    INTERRUPTED = "interrupted"
    """The user asked to stop; the study can be resumed."""
    ABORTED = "aborted"
    """Something failed that is no trial's fault (storage, executor); the study can be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOpened:
    """A driver holds the study's lock and is about to run."""

    study: str
    objectives: tuple[Objective, ...]
    n_trials: int
    """Trials the study may spend in all, those already in `history` included."""
    history: History
    """What the storage held; running trials in it are about to be run again."""
    competing: bool = True
    """Whether the trials compete for a front; those of a confirmation are listed beforehand and do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """A trial was written to the storage and handed to a worker."""

    trial: Trial
    seed: int
    attempt: int
    """1 for the first; a trial whose worker or driver died is run again under the same number and seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReported:
    """A running trial finished an epoch."""

    number: int
    measurement: Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFinished:
    """A trial completed, failed or was pruned, and the storage knows."""

    trial: Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something the user should read, once; not an error of the search."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStopped:
    """The driver stopped; nothing runs any more."""

    reason: StopReason
    history: History


StudyEvent = StudyOpened | TrialStarted | TrialReported | TrialFinished | Noted | StudyStopped
Listener = Callable[[StudyEvent], None]
