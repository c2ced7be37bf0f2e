"""Jobs that an executor has handed out, and what their workers' deaths mean."""

import time
from dataclasses import dataclass, field

from autopeft.errors import AutoPeftError, TrialError
from autopeft.search.trial import FailureKind
from autopeft.studies.executor import AbstractTrialSource, Assignment, WorkerLost, WorkerSpec
from autopeft.studies.signals import StopLevel, StopRequest
from autopeft.trainers.job import Report

LOAD_SECONDS = 1800.0
"""A worker may take so long to start and to load model and data, where trials have a deadline."""
MAX_STILLBORN = 3
"""Workers that may die before any has ever loaded the model; then it is not the trials' fault."""


@dataclass(slots=True, kw_only=True)
class InFlight:
    assignment: Assignment
    since: float = field(default_factory=time.monotonic)
    """When it was handed out; from when its worker is ready, when that was."""
    ready: bool = False

    @property
    def late(self) -> bool:
        """Whether it runs past its deadline; loading the model does not count, but may not take for ever either."""
        deadline = self.assignment.deadline_seconds
        limit = deadline if self.ready or deadline is None else max(deadline, LOAD_SECONDS)
        return limit is not None and time.monotonic() - self.since > limit


@dataclass(slots=True, kw_only=True)
class Book:
    """What the driver's parts share: jobs in flight, by Tune's trial id."""

    source: AbstractTrialSource
    stop: StopRequest
    spec: WorkerSpec
    flying: dict[str, InFlight] = field(default_factory=dict)
    fatal: AutoPeftError | None = None
    any_ready: bool = False
    stillborn: int = 0
    ended: int = 0
    """Jobs that have left `flying`."""

    @property
    def stopping(self) -> bool:
        return self.fatal is not None or self.stop.level is not StopLevel.NONE

    def record(self, assignment: Assignment, event: Report | WorkerLost) -> bool:
        """Tell the runner; Tune would turn its errors into text, so they are kept for the end."""
        try:
            return self.source.record(assignment, event)
        except AutoPeftError as error:
            self.fatal = self.fatal or error
            return False

    def land(self, trial_id: str) -> Assignment | None:
        """A job is over for this executor; None when it was already."""
        flight = self.flying.pop(trial_id, None)
        self.ended += flight is not None
        return flight and flight.assignment

    def lose(self, trial_id: str, reason: str) -> None:
        """A worker died; nothing to say when its job was finished (or timed out) before."""
        assignment = self.land(trial_id)
        if assignment is None:
            return
        self.stillborn += not self.any_ready
        if self.stillborn >= MAX_STILLBORN:
            self.fatal = self.fatal or TrialError(f"workers die before they have loaded the model: {reason}")
        if is_out_of_memory(reason):
            failure = (FailureKind.OOM.value, reason)
            for slot in range(len(assignment.numbers)):
                self.record(assignment, Report(slot=slot, measurement=None, failure=failure, done=True))
        self.record(assignment, WorkerLost(reason=reason, counted=not is_node_loss(reason)))


def is_out_of_memory(reason: str) -> bool:
    return "out of memory" in reason.lower() or "running low on memory" in reason.lower()


def is_node_loss(reason: str) -> bool:
    return "node has died" in reason or "node is dead" in reason or "preempted" in reason
