"""Trials that share a worker and its base model: what the worker is sent, and whom its reports are about."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, final

from autopeft.studies.executor import Assignment, Resources, WorkerLost
from autopeft.trainers.job import AbstractSlots, Report, TrainJob

MOST_AT_ONCE: Final[Mapping[str, int]] = {"cuda": 16, "cpu": 1}
"""Slots of a pack where the study file leaves it open; memory may allow fewer. On a CPU the base's products are busy
with one trial, and a pack is not clearly faster (`benchmarks/results/packing.jsonl`)."""
Tell = Callable[[Assignment, Report | WorkerLost], bool]


def at_once(resources: Resources) -> int:
    """Trials that a job may train at once."""
    if resources.trials_per_job is not None:
        return resources.trials_per_job
    import torch

    return MOST_AT_ONCE["cuda" if torch.cuda.is_available() and resources.gpus_per_job != 0 else "cpu"]


@final
class Bundle:
    """The trials of one job: those that it begins with, and those that take their places.

    Each is an assignment of one trial, as it is when it has a worker for itself; what is recorded does not tell.

    Args:
        assignments: One or more; slots count them in this order.
        at_once: Slots; with one, the job is the assignment's own.
    """

    def __init__(self, assignments: Sequence[Assignment], *, at_once: int = 1) -> None:
        self.at_once = at_once
        self._assignments: list[Assignment] = []
        self._since: list[float] = []
        self._open: set[int] = set()
        for assignment in assignments:
            self._enter(assignment)
        self.begun = len(self._assignments)

    @property
    def job(self) -> TrainJob:
        """What the worker begins with."""
        jobs = [self._job_of(assignment) for assignment in self._assignments[: self.begun]]
        if self.at_once == 1:
            return jobs[0]
        return replace(
            jobs[0],
            configurations=tuple(one for job in jobs for one in job.configurations),
            seeds=tuple(seed for job in jobs for seed in job.seeds),
            output_dirs=tuple(folder for job in jobs for folder in job.output_dirs),
            checkpoints=tuple(path for job in jobs for path in job.checkpoints),
            at_once=self.at_once,
        )

    @property
    def open(self) -> list[Assignment]:
        """Trials that have not ended."""
        return [self._assignments[slot] for slot in sorted(self._open)]

    @property
    def free(self) -> int:
        """Slots that nothing trains in."""
        return self.at_once - len(self._open)

    def add(self, assignment: Assignment) -> TrainJob:
        """Give a free slot to a trial; the job that the worker is to be sent for it."""
        self._enter(assignment)
        return self._job_of(assignment)

    def is_open(self, slot: int) -> bool:
        """Whether the trial of a slot has not ended."""
        return slot in self._open

    def record(self, tell: Tell, report: Report) -> bool:
        """Tell what a slot's trial reported; whether it goes on."""
        if report.slot not in self._open:
            return False
        going_on = tell(self._assignments[report.slot], replace(report, slot=0))
        if not going_on:
            self._open.discard(report.slot)
        return going_on

    def restart_clock(self) -> None:
        """The trials begin now: what was before is the worker's loading."""
        self._since = [time.monotonic()] * len(self._since)

    def late(self) -> list[Assignment]:
        """Open trials past their deadlines, which are longer by as many trials as share the device."""
        now = time.monotonic()
        return [
            self._assignments[slot]
            for slot in sorted(self._open)
            if (deadline := self._assignments[slot].deadline_seconds) is not None
            and now - self._since[slot] > deadline * self.at_once
        ]

    def end(self, assignment: Assignment) -> None:
        """A trial has ended without a report of its own."""
        self._open.discard(self._assignments.index(assignment))

    def _enter(self, assignment: Assignment) -> None:
        self._open.add(len(self._assignments))
        self._assignments.append(assignment)
        self._since.append(time.monotonic())

    def _job_of(self, assignment: Assignment) -> TrainJob:
        """With a deadline of its own where trials share the device: its trainer counts each one's share."""
        if self.at_once == 1 or assignment.deadline_seconds is None:
            return assignment.job
        settings = {**assignment.job.settings, "deadline_seconds": assignment.deadline_seconds}
        return replace(assignment.job, settings=settings)


@final
class Mailbox(AbstractSlots):
    """What a driver elsewhere has said of a job, read by the trainer between two reports."""

    def __init__(self) -> None:
        self._stopped: set[int] = set()
        self._waiting: deque[TrainJob] = deque()

    def put(self, stopped: Sequence[int], jobs: Sequence[TrainJob]) -> None:
        """Slots to stop, and jobs for free ones."""
        self._stopped |= set(stopped)
        self._waiting += jobs

    def stopped(self, slot: int) -> bool:
        return slot in self._stopped

    def refill(self) -> TrainJob | None:
        return self._waiting.popleft() if self._waiting else None
