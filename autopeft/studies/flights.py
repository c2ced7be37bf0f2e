"""Jobs that an executor has handed out, and what their workers' deaths mean."""

import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from autopeft.errors import AutoPeftError, TrialError
from autopeft.search.trial import FailureKind
from autopeft.studies.executor import AbstractTrialSource, Assignment, WorkerLost, WorkerSpec
from autopeft.studies.packs import Bundle
from autopeft.studies.signals import StopLevel, StopRequest
from autopeft.trainers.job import Report

LOAD_SECONDS = 1800.0
"""A worker may take so long to start and to load model and data, where trials have a deadline."""
MAX_STILLBORN = 3
"""Workers that may die before any has ever loaded the model; then it is not the trials' fault."""


@dataclass(slots=True, kw_only=True)
class InFlight:
    bundle: Bundle
    since: float = field(default_factory=time.monotonic)
    """When it was handed out."""
    ready: bool = False
    refill: "Future[list[Assignment]] | None" = None
    """The trial that is being proposed for a free slot."""
    asked: int | None = None
    """How many trials had ended when there was none to propose."""

    @property
    def late(self) -> list[Assignment]:
        """Trials past their deadlines; loading the model does not count, but may not take for ever either."""
        if self.ready:
            return self.bundle.late()
        limits = [row.deadline_seconds for row in self.bundle.open if row.deadline_seconds is not None]
        loading = time.monotonic() - self.since > max([LOAD_SECONDS, *limits])
        return self.bundle.open if limits and loading else []

    def begin(self) -> None:
        """Its worker is ready."""
        self.ready = True
        self.bundle.restart_clock()


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
    """Trials that have ended, and jobs that have left `flying`."""
    spare: list[Assignment] = field(default_factory=list)
    """Trials that were to join a job that ended before they could."""
    late_refills: "list[Future[list[Assignment]]]" = field(default_factory=list)
    """What was being proposed for jobs that have ended."""

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

    def land(self, trial_id: str) -> list[Assignment]:
        """A job is over for this executor; its trials that have not ended, none when it was over already."""
        flight = self.flying.pop(trial_id, None)
        if flight is None:
            return []
        self.ended += 1
        if flight.refill is not None:
            self.late_refills.append(flight.refill)
        return flight.bundle.open

    def refilled(self, flight: InFlight, pool: Executor) -> list[Assignment]:
        """Trials for the free slots of a job, once they have been thought of; others train meanwhile."""
        bundle = flight.bundle
        if flight.refill is not None:
            if not flight.refill.done():
                return []
            found, flight.refill = flight.refill.result(), None
            flight.asked = None if found else self.ended
            return found
        if bundle.free and not self.stopping and flight.asked != self.ended:
            flight.refill = pool.submit(self.source.propose, bundle.free, beside=bundle.open)
        return []

    def lose(self, trial_id: str, reason: str) -> None:
        """A worker died; nothing to say when its job was finished (or timed out) before."""
        if trial_id not in self.flying:
            return
        assignments = self.land(trial_id)
        self.stillborn += not self.any_ready
        if self.stillborn >= MAX_STILLBORN:
            self.fatal = self.fatal or TrialError(f"workers die before they have loaded the model: {reason}")
        for assignment in assignments:
            # Of several trials nobody knows which one took the memory: each is run again by itself.
            if is_out_of_memory(reason) and len(assignments) == 1:
                failure = (FailureKind.OOM.value, reason)
                self.record(assignment, Report(slot=0, measurement=None, failure=failure, done=True))
            self.record(assignment, WorkerLost(reason=reason, counted=not is_node_loss(reason)))


def is_out_of_memory(reason: str) -> bool:
    return "out of memory" in reason.lower() or "running low on memory" in reason.lower()


def is_node_loss(reason: str) -> bool:
    return "node has died" in reason or "node is dead" in reason or "preempted" in reason
