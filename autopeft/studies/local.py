"""Jobs one after the other in this process: for debugging, and the plain reading of what an executor does."""

from dataclasses import replace
from typing import final

from autopeft.studies.executor import AbstractExecutor, AbstractTrialSource, WorkerSpec, timeout_report
from autopeft.studies.packs import Bundle
from autopeft.studies.signals import StopLevel, StopRequest
from autopeft.studies.worker import Worker
from autopeft.trainers.job import AbstractSlots, TrainJob


class LocalExecutor(AbstractExecutor):
    """Trains in the calling thread. A deadline or a stop is seen when the trainer reports, not within an epoch.

    Args:
        spec: What the worker is built from.
        threads: Of its linear algebra.
        at_once: Trials that train at once.
    """

    def __init__(self, spec: WorkerSpec, *, threads: int | None = None, at_once: int = 1) -> None:
        self._spec = replace(spec, threads=threads)
        self._at_once = at_once

    def run(self, source: AbstractTrialSource, stop: StopRequest) -> None:
        worker = Worker(self._spec)
        try:
            worker.build()
            while stop.level is StopLevel.NONE:
                trials = source.propose(self._at_once)
                if not trials:
                    return
                self._train(worker, source, Bundle(trials, at_once=self._at_once), stop)
        finally:
            worker.close()

    def _train(self, worker: Worker, source: AbstractTrialSource, bundle: Bundle, stop: StopRequest) -> None:
        reports = worker.run(bundle.job, _Asked(source, bundle, stop) if self._at_once > 1 else None)
        try:
            for report in reports:
                if stop.level is StopLevel.NOW:
                    return
                going_on = bundle.record(source.record, report)
                for assignment in bundle.late() if going_on else ():
                    source.record(assignment, timeout_report(assignment))
                    bundle.end(assignment)
                if not bundle.open and self._at_once == 1:
                    return
        finally:
            reports.close()


@final
class _Asked(AbstractSlots):
    """Asks the source, in the thread that trains, whom to train next."""

    def __init__(self, source: AbstractTrialSource, bundle: Bundle, stop: StopRequest) -> None:
        self._source, self._bundle, self._stop = source, bundle, stop
        self._dry: int | None = None
        """How many trials were open when there was none to add."""

    def stopped(self, slot: int) -> bool:
        return not self._bundle.is_open(slot)

    def refill(self) -> TrainJob | None:
        running = self._bundle.open
        if self._stop.level is not StopLevel.NONE or self._dry == len(running):
            return None
        found = self._source.propose(1, beside=running)
        self._dry = None if found else len(running)
        return self._bundle.add(found[0]) if found else None
