"""Jobs one after the other in this process: for debugging, and the plain reading of what an executor does."""

import time
from dataclasses import replace

from autopeft.studies.executor import AbstractExecutor, AbstractTrialSource, Assignment, WorkerSpec, timeout_report
from autopeft.studies.signals import StopLevel, StopRequest
from autopeft.studies.worker import Worker


class LocalExecutor(AbstractExecutor):
    """Trains in the calling thread. A deadline or a stop is seen when the trainer reports, not within an epoch."""

    def __init__(self, spec: WorkerSpec, *, threads: int | None = None) -> None:
        self._spec = replace(spec, threads=threads)

    def run(self, source: AbstractTrialSource, stop: StopRequest) -> None:
        worker = Worker(self._spec)
        try:
            worker.build()
            while stop.level is StopLevel.NONE:
                jobs = source.propose(1)
                if not jobs:
                    return
                for assignment in jobs:
                    self._train(worker, source, assignment, stop)
        finally:
            worker.close()

    def _train(self, worker: Worker, source: AbstractTrialSource, assignment: Assignment, stop: StopRequest) -> None:
        started = time.monotonic()
        reports = worker.run(assignment.job)
        try:
            for report in reports:
                if stop.level is StopLevel.NOW:
                    return
                going_on = source.record(assignment, report)
                if going_on and _late(assignment, started):
                    source.record(assignment, timeout_report(assignment, report.slot))
                    going_on = False
                if not going_on and len(assignment.numbers) == 1:
                    return
        finally:
            reports.close()


def _late(assignment: Assignment, started: float) -> bool:
    deadline = assignment.deadline_seconds
    return deadline is not None and time.monotonic() - started > deadline
