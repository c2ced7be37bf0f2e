"""The study's loop in two calls: `propose` the next jobs, `record` what workers say. Every executor uses these only.

The runner is a study's one writer: it keeps the history in memory and makes each change durable in the storage before
anybody hears of it. Trial numbers, seeds and configurations follow from (history, seed): with one job at a time a
study that is killed and resumed writes the trials that an undisturbed one writes. With several jobs at once the order
in which they finish decides what the searcher knows, and only each trial by itself can be repeated.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autopeft.objectives.measurement import Measurement
from autopeft.search.scheduler import AbstractScheduler, RunAll
from autopeft.search.searcher import AbstractSearcher
from autopeft.search.trial import Failure, FailureKind, History, Pruning, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from autopeft.studies.artifacts import Artifacts
from autopeft.studies.capacity import Capacity
from autopeft.studies.events import Listener, Noted, StopReason, StudyEvent, TrialFinished, TrialReported, TrialStarted
from autopeft.studies.executor import AbstractTrialSource, Assignment, WorkerLost
from autopeft.studies.records import HeldOut, RunRecord, TrialRecord
from autopeft.studies.storage import StoredStudy, to_trial
from autopeft.studies.waiting import WAITING, LikenessOf, WaitingRoom, left_waiting
from autopeft.trainers.job import Report, TrainJob

MAX_LOSSES = 2
"""Workers a trial may lose before it fails as `crashed`: once may be bad luck."""
_ITEM_BYTES = {"bfloat16": 2, "float16": 2}
_log = logging.getLogger(__name__)


def trial_seed(study_seed: int, number: int) -> int:
    """The seed of a trial, in [0, 2**32): a child of the study's seed, the same however often the trial is run."""
    return int(np.random.SeedSequence(study_seed, spawn_key=(number,)).generate_state(1)[0])


class Runner(AbstractTrialSource):
    """Proposes and records the trials of one study, for any executor.

    Args:
        study: Where everything is written; this process must hold its lock.
        space: The bound search space.
        searcher: Chooses configurations.
        seed: The study's; trial seeds are its children.
        n_trials: Trials the study may spend in all: completed, failed and pruned ones count.
        epochs: Budget of each trial.
        scheduler: Says after each epoch which trials train on; None trains all to their end.
        artifacts: Where trained adapters go; None keeps none.
        likeness: What trials that share a pack should have in common; None where each has a worker for itself.
        at_once: Slots of a pack.
        capacity: Memory of one job; a trial that may not fit fails as `oom` without being started. None starts all.
        deadline_seconds: How long a trial may run; None for ever.
        listeners: Told of every event, in order.
    """

    def __init__(
        self,
        study: StoredStudy,
        *,
        space: SearchSpace,
        searcher: AbstractSearcher,
        seed: int,
        n_trials: int,
        epochs: int,
        scheduler: AbstractScheduler | None = None,
        artifacts: Artifacts | None = None,
        likeness: LikenessOf | None = None,
        at_once: int = 1,
        capacity: Capacity | None = None,
        deadline_seconds: float | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._study, self._space = study, space
        self._seed, self._n_trials, self._epochs = seed, n_trials, epochs
        self._scheduler = scheduler or RunAll()
        self._artifacts, self._deadline = artifacts, deadline_seconds
        self._capacity = capacity
        self._listeners = tuple(listeners)
        self._complained: set[tuple[int, str]] = set()
        self._lock = threading.RLock()
        self._closed = False
        self._live: dict[int, Assignment] = {}
        self._runs: dict[int, RunRecord] = {}
        self._trials: dict[int, Trial] = {trial.number: trial for trial in study.history()}
        self._budgets: dict[int, int] = {}
        for number, (record, run) in study.runs().items():
            self._budgets[number], self._runs[number] = record.epochs, run
        self._room = WaitingRoom(
            searcher,
            likeness=likeness,
            at_once=at_once,
            waiting=left_waiting(study, self.history()),
            keep=lambda rows: study.set_attr(WAITING, [row.to_json() for row in rows]),
        )
        # What a dead driver left running comes first, under the same numbers and seeds.
        self._queue = deque(trial.number for trial in self.history().in_state(TrialState.RUNNING))

    def history(self) -> History:
        """All trials now."""
        with self._lock:
            return History(trials=tuple(self._trials[number] for number in sorted(self._trials)))

    @property
    def outcome(self) -> StopReason:
        """Why nothing more is proposed, once an executor ran dry."""
        return StopReason.BUDGET if self.spent else StopReason.EXHAUSTED

    @property
    def spent(self) -> bool:
        """Whether as many trials as may be spent have finished, and none that was stopped is to go on."""
        history = self.history()
        enough = sum(trial.state.finished for trial in history) >= self._n_trials
        return enough and not self._scheduler.resumable(history)

    def close(self) -> None:
        """Nothing is written after this returns; a proposal still being computed comes to nothing."""
        with self._lock:
            self._closed = True

    def propose(self, n: int, *, beside: Sequence[Assignment] = (), more: int = 0) -> list[Assignment]:
        company = [number for assignment in beside for number in assignment.numbers]
        with self._lock:
            if any(self._runs[number].losses for number in company):
                return []
            jobs = self._again(n, company)
        if any(self._runs[number].losses for assignment in jobs for number in assignment.numbers):
            return jobs
        while len(jobs) < n:
            with self._lock:
                room = self._n_trials - len(self._trials)
                history = self.history()
                taken = [*company, *(number for assignment in jobs for number in assignment.numbers)]
                others = self._configurations(taken)
            fresh = self._room.ask(history, n - len(jobs), company=others, more=more, room=room)
            with self._lock:
                if self._closed:
                    return []
                fitting = fresh[: self._fitting(fresh, taken)]
                begun = [self._begin(configuration) for configuration in fitting]
                self._room.took(fitting)
            jobs += [assignment for assignment in begun if assignment is not None]
            if not begun or (len(begun) < len(fresh) and None not in begun):
                break
        return jobs

    def _configurations(self, numbers: Sequence[int]) -> list[Configuration]:
        return [self._trials[number].configuration for number in numbers]

    def _again(self, n: int, company: Sequence[int]) -> list[Assignment]:
        """Up to `n` trials that are to be run again or that go on after they were stopped; one that has lost a worker
        runs alone, so that it is known why.
        """
        jobs: list[Assignment] = []
        paused = self._scheduler.resumable(self.history())
        first = self._room.preferred(
            self._configurations(paused), max(0, n - len(self._queue)), company=self._configurations(company)
        )
        waiting = deque([*self._queue, *(paused[index] for index in first)])
        while waiting and len(jobs) < n:
            number = waiting.popleft()
            taken = [*company, *(row for assignment in jobs for row in assignment.numbers)]
            lost = self._runs[number].losses > 0
            if taken and (lost or not self._fitting([self._trials[number].configuration], taken)):
                break
            if self._queue and self._queue[0] == number:
                self._queue.popleft()
            jobs.append(self._rerun(number))
            if lost:
                break
        return jobs

    def _fitting(self, configurations: Sequence[Configuration], company: Sequence[int]) -> int:
        """How many of `configurations`, from the first, fit the memory of one job beside the trials of `company`."""
        if self._capacity is None or len(configurations) + len(company) < 2:
            return len(configurations)
        predicted = [self._trials[number].predicted.get("memory") for number in company]
        for index, configuration in enumerate(configurations):
            predicted.append(self._space.predicted(configuration).get("memory"))
            known = [float(row) for row in predicted if row is not None]
            together = self._capacity.fits_together(known, shared=self._base_bytes(), trials=self._trials.values())
            if len(predicted) > 1 and not (together and len(known) == len(predicted)):
                return index
        return len(configurations)

    def _base_bytes(self) -> float:
        """Of the weights that the trials of a job share."""
        shape = self._space.shape
        return shape.base_parameters * _ITEM_BYTES.get(shape.dtype, 4)

    def record(self, assignment: Assignment, event: Report | WorkerLost) -> bool:
        with self._lock:
            if self._closed:
                return False
            if isinstance(event, WorkerLost):
                for number in assignment.numbers:
                    if self._live.get(number) is assignment:
                        self._lose(number, event)
                return False
            number = assignment.numbers[event.slot]
            if self._live.get(number) is not assignment:
                return False
            return self._report(number, event)

    def emit(self, event: StudyEvent) -> None:
        """Tell every listener; one that raises is noted once for each kind of error, and told the next event again."""
        with self._lock:
            for index, listener in enumerate(self._listeners):
                try:
                    listener(event)
                except Exception as error:  # noqa: BLE001  # what watches a search must never stop it
                    self._complain(index, error)

    def _complain(self, index: int, error: Exception) -> None:
        _log.debug("a listener failed", exc_info=error)
        key = (index, type(error).__name__)
        if key not in self._complained:
            self._complained.add(key)
            self.emit(Noted(message=f"the search goes on without this: {type(error).__name__}: {error}"))

    def _begin(self, configuration: Configuration) -> Assignment | None:
        """The job of a new trial; None where it cannot fit and has failed already."""
        predicted = {name: float(value) for name, value in self._space.predicted(configuration).items()}
        record = TrialRecord(configuration=configuration, predicted=predicted, epochs=self._epochs)
        (number,) = self._study.start(self._space, [record])
        self._runs[number], self._budgets[number] = RunRecord(started=time.time()), self._epochs
        self._trials[number] = to_trial(number, TrialState.RUNNING, record, self._runs[number])
        if self._capacity is not None:
            failure = self._capacity.refusal(predicted.get("memory"), self._trials.values())
            if failure is not None:
                self._finish(number, replace(self._runs[number], failure=failure), TrialState.FAILED)
                self.emit(TrialFinished(trial=self._trials[number]))
                return None
        return self._assign(number)

    def _rerun(self, number: int) -> Assignment:
        """Begin again, from the checkpoint where one is kept; its measurements and what they decided then stand."""
        old, paused = self._runs[number], self._trials[number].state is TrialState.PRUNED
        run = RunRecord(attempt=old.attempt + 1, started=time.time(), losses=old.losses)
        if self._scheduler.resumes:
            going_on = paused or old.resumed
            run = replace(run, measurements=old.measurements, resumed=going_on, spent=old.seconds)
        (self._study.resume if paused else self._study.save)(number, run)
        self._update(number, run, TrialState.RUNNING)
        return self._assign(number)

    def _assign(self, number: int) -> Assignment:
        trial, seed = self._trials[number], trial_seed(self._seed, number)
        again = self._runs[number].attempt > 1
        folder = self._artifacts.prepare(number, again=again) if self._artifacts else None
        checkpoint = self._artifacts.checkpoint(number) if self._artifacts and self._scheduler.resumes else None
        job = TrainJob(
            configurations=(trial.configuration,),
            seeds=(seed,),
            epochs=self._budgets[number],
            output_dirs=(folder,) if folder else (),
            checkpoints=(checkpoint,) if checkpoint else (),
        )
        assignment = Assignment(numbers=(number,), job=job, deadline_seconds=self._deadline)
        self._live[number] = assignment
        self.emit(TrialStarted(trial=trial, seed=seed, attempt=self._runs[number].attempt))
        return assignment

    def _report(self, number: int, report: Report) -> bool:
        run = self._runs[number]
        if report.measurement is not None and report.measurement.epoch <= len(run.measurements):
            return True
        if report.measurement is not None:
            run = replace(run, measurements=(*run.measurements, report.measurement))
        if report.test_metrics:
            run = replace(run, held_out=HeldOut(metrics=report.test_metrics, draws=report.test_draws))
        failure = self._failure(report, run)
        if failure is not None:
            self._finish(number, replace(run, failure=failure), TrialState.FAILED)
        elif report.done:
            self._finish(number, run, TrialState.COMPLETED)
        elif report.measurement is not None and (pruning := self._judged(number, report.measurement)) is not None:
            self._finish(number, replace(run, pruning=pruning), TrialState.PRUNED)
        else:
            self._study.save(number, run)
            self._update(number, run, TrialState.RUNNING)
        if report.measurement is not None:
            self.emit(TrialReported(number=number, measurement=report.measurement))
        if number not in self._live:
            self.emit(TrialFinished(trial=self._trials[number]))
        return number in self._live

    def _judged(self, number: int, measurement: Measurement) -> Pruning | None:
        return self._scheduler.judge(self.history(), number, measurement)

    def _failure(self, report: Report, run: RunRecord) -> Failure | None:
        if report.failure is not None:
            kind, message = report.failure
            known = kind in set(FailureKind)
            return Failure(kind=FailureKind(kind) if known else FailureKind.CRASHED, message=message)
        if report.measurement is not None:
            return self._unusable(report.measurement)
        if report.done and not run.measurements:
            return Failure(kind=FailureKind.CRASHED, message="the trainer reported no measurement")
        return None

    def _unusable(self, measurement: Measurement) -> Failure | None:
        """Why a measurement cannot be stored as objective values: one is not finite or was not measured."""
        for objective in self._study.objectives:
            try:
                value = measurement.value(objective.name)
            except KeyError:
                return Failure(kind=FailureKind.CRASHED, message=f"the trainer did not measure {objective.name}")
            if not math.isfinite(value):
                return Failure(
                    kind=FailureKind.DIVERGED, message=f"{objective.name} is {value} after epoch {measurement.epoch}"
                )
        return None

    def _lose(self, number: int, event: WorkerLost) -> None:
        run = replace(self._runs[number], losses=self._runs[number].losses + event.counted)
        del self._live[number]
        if run.losses < MAX_LOSSES:
            self._runs[number] = run
            self._study.save(number, run)
            self._queue.append(number)
            self.emit(Noted(message=f"trial {number} lost its worker and will be run again: {event.reason}"))
            return
        message = f"{run.losses} workers died under this trial, the last one: {event.reason}"
        self._finish(
            number, replace(run, failure=Failure(kind=FailureKind.CRASHED, message=message)), TrialState.FAILED
        )
        self.emit(TrialFinished(trial=self._trials[number]))

    def _finish(self, number: int, run: RunRecord, state: TrialState) -> None:
        run = replace(run, ended=time.time())
        if run.pruning is not None and not run.pruning.final:
            self._study.pause(number, run)
        else:
            self._study.finish(number, state, run)
        self._live.pop(number, None)
        self._update(number, run, state)
        if self._artifacts is not None:
            self._sweep(self._artifacts)

    def _sweep(self, artifacts: Artifacts) -> None:
        try:
            artifacts.sweep(self.history(), self._study.objectives)
        except OSError as error:
            self.emit(Noted(message=f"dominated adapters stay on disk: {error}"))

    def _update(self, number: int, run: RunRecord, state: TrialState) -> None:
        self._runs[number] = run
        self._trials[number] = replace(
            self._trials[number],
            state=state,
            measurements=run.measurements,
            failure=run.failure,
            pruning=run.pruning,
            resumed=run.resumed,
            seconds=run.seconds,
        )
