"""Jobs on Ray Tune: long-lived workers, several at once, on this machine or a cluster. Only this module and
`ray_session` name Ray.

Tune runs, it does not remember: its files go to a folder that is deleted at the end, nothing is restored from them.
A searcher of ours gives Tune the runner's jobs, a scheduler of ours gives the runner Tune's results; the trainer stays
loaded between jobs because workers are class Trainables whose actors are reused.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ray
from ray import tune
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from autopeft.errors import AutoPeftError, SpecError
from autopeft.studies.executor import (
    AbstractExecutor,
    AbstractTrialSource,
    Assignment,
    Resources,
    WorkerLost,
    WorkerSpec,
    timeout_report,
)
from autopeft.studies.flights import Book, InFlight
from autopeft.studies.packs import Bundle, Mailbox, at_once
from autopeft.studies.ray_session import ray_session
from autopeft.studies.signals import StopLevel, StopRequest
from autopeft.studies.worker import Worker
from autopeft.trainers.job import Report, TrainJob

POLL_SECONDS = 0.05
"""How long Tune's event loop may wait for a proposal while jobs run."""
_TELLING = ("Worker exit", "killed", "memory", "Error:", "node has died", "node is dead", "preempted")


class TuneExecutor(AbstractExecutor):
    """Runs jobs on Ray; a Ray that this process has already started is used and left as it is."""

    def __init__(self, spec: WorkerSpec, resources: Resources) -> None:
        self._spec = replace(spec, threads=resources.cpus_per_job)
        self._resources = resources

    def run(self, source: AbstractTrialSource, stop: StopRequest) -> None:
        with ray_session(self._resources) as folder:
            self._run(Book(source=source, stop=stop, spec=self._spec), folder)

    def _run(self, book: Book, folder: Path) -> None:
        jobs, share = _share(self._resources)
        slots = at_once(self._resources)
        pool = ThreadPoolExecutor(1, thread_name_prefix="autopeft-propose")
        with suppress(_StopError):
            try:
                tune.run(
                    _JobTrainable,
                    name="study",
                    storage_path=str(folder / "tune"),
                    num_samples=-1,
                    search_alg=_Proposals(book, pool, at_once=slots, jobs=jobs),
                    max_concurrent_trials=jobs,
                    scheduler=_Recorder(book, pool),
                    callbacks=[_Watch(book)],
                    resources_per_trial=share,
                    reuse_actors=True,
                    trial_dirname_creator=_trial_id,
                    trial_name_creator=_trial_id,
                    raise_on_failed_trial=False,
                    verbose=0,
                )
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if book.fatal is not None:
            raise book.fatal


def _share(resources: Resources) -> tuple[int, dict[str, float]]:
    """How many jobs fit at once, and what each gets."""
    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 1.0), there.get("GPU", 0.0)
    gpu = resources.gpus_per_job if resources.gpus_per_job is not None else float(gpus > 0)
    if gpu > gpus:
        raise SpecError(f"resources.gpus_per_job: got {gpu:g}; {gpus:g} there", hint="use 0 to train on the CPU")
    fit = int(cpus // resources.cpus_per_job)
    if gpu > 0:
        # Several jobs share a GPU only whole: two of 0.4 fit on one, and 0.2 of it stays free.
        fit = min(fit, int(gpus // gpu) if gpu >= 1 else int(gpus) * int(1 / gpu + 1e-9))
    if fit < 1:
        raise SpecError(f"resources.cpus_per_job: got {resources.cpus_per_job}; {cpus:g} there", hint="use 1")
    jobs = fit if resources.max_jobs is None else min(fit, resources.max_jobs)
    return jobs, {"cpu": resources.cpus_per_job, "gpu": gpu}


def _trial_id(trial: TuneTrial) -> str:
    return str(trial.trial_id)


class _StopError(Exception):
    """Leaves Tune's loop at once; its clean-up kills the workers."""


class _JobTrainable(tune.Trainable):
    """A worker as Tune sees it: one step is one report."""

    def setup(self, config: dict[str, object]) -> None:
        spec = config["spec"]
        assert isinstance(spec, WorkerSpec)
        self._worker = Worker(spec)
        self._begin(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, object]) -> None:
        job = config["job"]
        assert isinstance(job, TrainJob)
        self._reports: Iterator[Report] | None = None
        self._job, self._mailbox = job, Mailbox()

    def tell(self, stopped: list[int], jobs: list[TrainJob]) -> None:
        """What the driver says between two steps: slots to stop, and jobs for free ones."""
        self._mailbox.put(stopped, jobs)

    def step(self) -> dict[str, object]:
        """The next report under `report`; the first step of a job only sees that model and data are loaded."""
        if self._reports is None:
            try:
                self._worker.build()
            except AutoPeftError as error:
                return {"fatal": error}
            self._reports = self._worker.run(self._job, self._mailbox if self._job.at_once > 1 else None)
            return {"ready": True}
        return {"report": next(self._reports, None)}

    def cleanup(self) -> None:
        self._worker.close()


class _Proposals(Searcher):
    """Gives Tune the runner's jobs. Proposals are computed in a thread, one at a time, when a slot is free."""

    def __init__(self, book: Book, pool: ThreadPoolExecutor, *, at_once: int, jobs: int) -> None:
        super().__init__()
        self._book, self._pool, self._at_once, self._jobs = book, pool, at_once, jobs
        self._pending: Future[list[Assignment]] | None = None
        self._dry_since: int | None = None

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:  # type: ignore[override]  # FINISHED is a str
        book = self._book
        if book.stopping:
            return Searcher.FINISHED
        waiting = bool(book.spare or book.late_refills)
        if self._dry_since == book.ended and book.flying and not waiting:
            return None
        jobs = self._next()
        if jobs is None:
            return Searcher.FINISHED if book.stopping else None
        if not jobs:
            if waiting:
                return None
            self._dry_since = book.ended
            return None if book.flying else Searcher.FINISHED
        bundle = Bundle(jobs, at_once=self._at_once)
        book.flying[trial_id] = InFlight(bundle=bundle)
        return {"job": bundle.job, "spec": book.spec}

    def _next(self) -> list[Assignment] | None:
        """Trials for a job: those whose job ended under them first. None while they are being thought of."""
        book = self._book
        if book.spare:
            jobs, book.spare = book.spare[: self._at_once], book.spare[self._at_once :]
            return jobs
        if self._pending is None:
            late = book.late_refills.pop(0) if book.late_refills else None
            others = max(0, self._jobs - len(book.flying) - 1)
            self._pending = self._pool.submit(self._proposed, late, others * self._at_once)
        jobs = self._wait(self._pending)
        if jobs is not None:
            self._pending = None
        return jobs

    def _proposed(self, late: "Future[list[Assignment]] | None", more: int) -> list[Assignment]:
        """As many trials as share a job, late ones first; other workers that are free want so many `more`."""
        found = late.result() if late is not None else []
        return found + self._book.source.propose(self._at_once - len(found), beside=found, more=more)

    def _wait(self, pending: "Future[list[Assignment]]") -> list[Assignment] | None:
        """The proposal; None when it is not ready and other jobs need the loop, or a stop was asked for."""
        while True:
            try:
                return pending.result(timeout=POLL_SECONDS)
            except TimeoutError:
                if pending.done() or self._book.flying or self._book.stopping:
                    return None

    def on_trial_complete(self, trial_id: str, result: dict[str, object] | None = None, error: bool = False) -> None:
        """Nothing: the recorder has seen every result."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the study storage remembers."""


class _Recorder(FIFOScheduler):
    """Gives the runner every report and stops the Tune trial whose job is done."""

    def __init__(self, book: Book, pool: ThreadPoolExecutor) -> None:
        super().__init__()
        self._book, self._pool = book, pool

    def on_trial_result(self, tune_controller: object, trial: TuneTrial, result: dict[str, object]) -> str:
        book, flight = self._book, self._book.flying.get(trial.trial_id)
        if "fatal" in result:
            error = result["fatal"]
            assert isinstance(error, AutoPeftError)
            book.fatal = error
            return TrialScheduler.STOP
        if flight is None:
            return TrialScheduler.STOP
        if "ready" in result:
            book.any_ready = True
            flight.begin()
            return TrialScheduler.CONTINUE
        report, bundle = result["report"], flight.bundle
        going_on = isinstance(report, Report) and bundle.record(book.record, report)
        if report is None or (bundle.at_once == 1 and not going_on):
            book.spare += book.land(trial.trial_id)
            return TrialScheduler.STOP
        if bundle.at_once > 1:
            assert isinstance(report, Report)
            book.ended += not going_on
            stopped = [] if going_on or report.done else [report.slot]
            jobs = [bundle.add(assignment) for assignment in book.refilled(flight, self._pool)]
            actor = trial.temporary_state.ray_actor
            if actor is not None and (stopped or jobs):
                actor.tell.remote(stopped, jobs)
        return TrialScheduler.CONTINUE


class _Watch(Callback):
    """Sees what no result tells: dead workers, deadlines, a request to stop now."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        self._book.lose(trial.trial_id, _reason(trial))

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: object) -> None:
        book = self._book
        if book.stop.level is StopLevel.NOW or book.fatal is not None:
            for trial in trials:
                _kill(trial)
            raise _StopError
        for trial in trials:
            flight = book.flying.get(trial.trial_id)
            late = flight.late if flight is not None else []
            if late:
                for assignment in book.land(trial.trial_id):
                    neighbour = WorkerLost(reason="another trial of its job ran past its deadline", counted=False)
                    book.record(assignment, timeout_report(assignment) if assignment in late else neighbour)
                _kill(trial)


def _kill(trial: TuneTrial) -> None:
    actor = trial.temporary_state.ray_actor
    if actor is not None:
        ray.kill(actor)


def _reason(trial: TuneTrial) -> str:
    """What Tune wrote about a trial's error, in one line."""
    file = Path(trial.error_file or "")
    text = file.read_text() if file.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "Failure #" not in line]
    told = [line for line in lines if any(word in line for word in _TELLING)]
    line = (told or lines or ["its process is gone"])[-1]
    # Of Ray's paragraph the first sentence is a fact and the rest a list of guesses.
    return line.partition("Worker exit detail: ")[2].partition(". Some common causes")[0] or line[:300]
