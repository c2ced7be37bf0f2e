"""One run of a study from lock to last event: what `autopeft search` calls once everything is built."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from autopeft.errors import InputError, StorageError
from autopeft.search.scheduler import AbstractScheduler, RunAll
from autopeft.search.searcher import AbstractSearcher
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from autopeft.studies.artifacts import Artifacts
from autopeft.studies.capacity import capacity_of
from autopeft.studies.events import Listener, Noted, StopReason, StudyOpened, StudyStopped
from autopeft.studies.executor import AbstractExecutor, AbstractTrialSource, Resources, WorkerSpec
from autopeft.studies.local import LocalExecutor
from autopeft.studies.lock import StudyLock
from autopeft.studies.packs import at_once
from autopeft.studies.runner import Runner
from autopeft.studies.signals import StopLevel, StopRequest, signals_raise
from autopeft.studies.storage import StoredStudy
from autopeft.studies.waiting import Likeness, LikenessOf

_WATCH_SECONDS = 0.1
_SAID = {
    StopLevel.DRAIN: "stopping: what runs is finished first; once more (Ctrl-C) stops now",
    StopLevel.NOW: "stopping now: what runs will be run again when the study is resumed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run: everything but the study's storage and where to run."""

    space: SearchSpace
    searcher: AbstractSearcher
    seed: int
    n_trials: int
    epochs: int
    worker: WorkerSpec
    scheduler: AbstractScheduler = field(default_factory=RunAll)
    """Which trials train on after an epoch."""
    artifacts: Path | None = None
    """Folder in which every study keeps its adapters in a folder of its own; None keeps none."""
    source: Callable[[AbstractTrialSource], AbstractTrialSource] | None = None
    """Stands between the runner and the executor, where jobs are to be other than a search's."""


def executor_for(worker: WorkerSpec, resources: Resources) -> AbstractExecutor:
    """The executor that `resources` names."""
    worker = replace(worker, training=replace(worker.training, prefix_bytes=resources.prefix_cache))
    if resources.executor == "local":
        return LocalExecutor(worker, threads=resources.cpus_per_job, at_once=at_once(resources))
    from autopeft.studies.tune import TuneExecutor

    return TuneExecutor(worker, resources)


def drive(
    study: StoredStudy,
    plan: Plan,
    resources: Resources,
    *,
    listeners: Sequence[Listener] = (),
    stop: StopRequest | None = None,
) -> StopReason:
    """Run `study` to its budget, or until the space is exhausted or somebody asks to stop.

    SIGINT and SIGTERM are taken while it runs (in the main thread): the first finishes what runs, the second stops now.

    Args:
        study: Open to write.
        plan: What to run.
        resources: Where to run it.
        listeners: Told of every event, from `StudyOpened` to `StudyStopped`.
        stop: Raised by the caller to stop the study; None when only signals do.

    Raises:
        StorageError: Another driver holds the study, or the storage fails; the study can be resumed.
        AutoPeftError: What a worker found wrong with model, task or data before any training.
    """
    stop = stop or StopRequest()
    lock = StudyLock(study, on_lost=lambda: stop.raise_to(StopLevel.NOW))
    with lock:
        runner = _runner(study, plan, resources, listeners)
        history = runner.history()
        runner.emit(
            StudyOpened(
                study=study.name,
                objectives=study.objectives,
                n_trials=plan.n_trials,
                history=history,
                competing=plan.source is None,
            )
        )
        reason = StopReason.ABORTED
        try:
            with signals_raise(stop), _announced(stop, runner):
                if not runner.spent:
                    source = plan.source(runner) if plan.source else runner
                    executor_for(plan.worker, resources).run(source, stop)
            reason = runner.outcome if stop.level is StopLevel.NONE else StopReason.INTERRUPTED
        except KeyboardInterrupt:
            reason = StopReason.INTERRUPTED
        except InputError as error:
            runner.close()
            if not isinstance(error, StorageError):
                _forget(study, runner)
            raise
        finally:
            runner.close()
            runner.emit(StudyStopped(reason=reason, history=runner.history()))
    if lock.lost:
        raise StorageError(
            f"study {study.name}: another driver took it over while this one slept",
            hint="that one goes on; nothing is lost",
        )
    return reason


def _runner(study: StoredStudy, plan: Plan, resources: Resources, listeners: Sequence[Listener]) -> Runner:
    slots = at_once(resources)
    return Runner(
        study,
        space=plan.space,
        searcher=plan.searcher,
        seed=plan.seed,
        n_trials=plan.n_trials,
        epochs=plan.epochs,
        scheduler=plan.scheduler,
        artifacts=Artifacts(plan.artifacts, study.name) if plan.artifacts else None,
        likeness=_likeness(plan) if slots > 1 else None,
        at_once=slots,
        capacity=capacity_of(resources),
        deadline_seconds=resources.trial_deadline_seconds,
        listeners=listeners,
    )


def _likeness(plan: Plan) -> LikenessOf:
    """What trials that share a pack should have in common, by how the plan trains them."""
    from autopeft.trainers.loop import settings_of
    from autopeft.trainers.prefix import lowest_layer

    n_layers = plan.space.shape.n_layers

    def likeness(configuration: Configuration) -> Likeness:
        try:
            settings = settings_of(plan.worker.training, configuration)
        except InputError:
            return Likeness(0)  # its trial will fail, and say why
        lowest = lowest_layer(configuration, settings, n_layers=n_layers)
        return Likeness(lowest, settings.batch_size * settings.max_length)

    return likeness


def _forget(study: StoredStudy, runner: Runner) -> None:
    """A study that never got going because its input was wrong leaves nothing: the corrected file may have its name."""
    if not any(trial.state.finished for trial in runner.history()):
        study.delete()


@contextmanager
def _announced(stop: StopRequest, runner: Runner) -> Iterator[None]:
    """Listeners hear of each rise of `stop`, from a thread: a signal handler may run none of their code."""
    done = threading.Event()

    def watch() -> None:
        said = StopLevel.NONE
        while not done.wait(_WATCH_SECONDS):
            if stop.level > said:
                said = stop.level
                runner.emit(Noted(message=_SAID[said]))

    thread = threading.Thread(target=watch, name="autopeft-stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
