"""One configuration trained by itself, by the worker that trains a study's trials."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO, final

from rich.console import Console
from rich.status import Status
from rich.text import Text

from autopeft.errors import DeadlineError, DivergedError, OutOfMemoryError, TrialError
from autopeft.objectives.measurement import Measurement
from autopeft.search.trial import Failure, FailureKind, Trial, TrialState
from autopeft.studies.describe import human_seconds
from autopeft.studies.events import Listener, Noted, StudyEvent, TrialFinished, TrialReported, TrialStarted
from autopeft.studies.executor import WorkerSpec
from autopeft.studies.progress import ProgressMode
from autopeft.studies.spec import TRAINER, RunSpec
from autopeft.studies.worker import Worker
from autopeft.trainers.job import Report, TrainJob

_ERRORS: dict[FailureKind, type[TrialError]] = {
    FailureKind.OOM: OutOfMemoryError,
    FailureKind.DIVERGED: DivergedError,
    FailureKind.TIMEOUT: DeadlineError,
    FailureKind.CRASHED: TrialError,
}
_HINTS = {
    FailureKind.OOM: "lower training.batch_size or max_length",
    FailureKind.DIVERGED: "lower the learning rate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is trained: a trial without a study around it."""

    spec: RunSpec
    trial: Trial
    """Running; its number is the one that events carry."""
    seed: int
    epochs: int


def train_into(training: Training, folder: Path, *, listeners: Sequence[Listener] = ()) -> Trial:
    """Train, and write the adapter into `folder`; the completed trial.

    Raises:
        InputError: Model, task or data are not usable.
        TrialError: The training failed; nothing is in `folder`.
    """
    spec = training.spec
    worker = Worker(
        WorkerSpec(trainer=TRAINER, model=spec.model, task=spec.task, training=spec.training, threads=spec.threads)
    )
    job = TrainJob(
        configurations=(training.trial.configuration,),
        seeds=(training.seed,),
        epochs=training.epochs,
        output_dirs=(folder,),
    )
    trial, began = training.trial, time.monotonic()
    _tell(listeners, TrialStarted(trial=trial, seed=training.seed, attempt=1))
    try:
        for report in worker.run(job):
            trial = _with(trial, report)
            if report.measurement is not None:
                _tell(listeners, TrialReported(number=trial.number, measurement=report.measurement))
    finally:
        worker.close()
    state = TrialState.COMPLETED if trial.failure is None else TrialState.FAILED
    trial = replace(trial, state=state, seconds=time.monotonic() - began)
    _tell(listeners, TrialFinished(trial=trial))
    if trial.failure is not None:
        kind = trial.failure.kind
        raise _ERRORS[kind](f"the training failed ({kind.value}): {trial.failure.message}", hint=_HINTS.get(kind, ""))
    return trial


def _with(trial: Trial, report: Report) -> Trial:
    measured = () if report.measurement is None else (report.measurement,)
    trial = replace(trial, measurements=(*trial.measurements, *measured))
    if report.failure is None:
        return trial
    kind, message = report.failure
    known = kind in set(FailureKind)
    return replace(trial, failure=Failure(kind=FailureKind(kind) if known else FailureKind.CRASHED, message=message))


def _tell(listeners: Sequence[Listener], event: StudyEvent) -> None:
    for listener in listeners:
        listener(event)


@final
class EpochReporter:
    """Shows on a stream how one training goes: a line an epoch, and on a terminal the time while it runs.

    Args:
        stream: Where to, usually stderr.
        mode: How (`progress.choose_mode`).
        epochs: Of the whole training.
        to_json: An event as one JSON text, for `ProgressMode.JSON`.
    """

    def __init__(
        self, stream: TextIO, mode: ProgressMode, *, epochs: int, to_json: Callable[[StudyEvent], str]
    ) -> None:
        self._stream, self._mode, self._epochs, self._to_json = stream, mode, epochs, to_json
        self._console = Console(file=stream, highlight=False, soft_wrap=mode is not ProgressMode.LIVE)
        self._status: Status | None = None

    def on_event(self, event: StudyEvent) -> None:
        if self._mode is ProgressMode.JSON:
            self._stream.write(self._to_json(event) + "\n")
            self._stream.flush()
            return
        match event:
            case Noted(message=message):
                self._say(message)
            case TrialStarted() if self._mode is ProgressMode.LIVE:
                self._status = self._console.status("training")
                self._status.start()
            case TrialReported(measurement=measurement) if self._mode is not ProgressMode.QUIET:
                self._say(epoch_line(measurement, self._epochs))
            case TrialFinished():
                self.close()
            case _:
                pass

    def close(self) -> None:
        """Take the live display away; what was said stays."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _say(self, line: str) -> None:
        self._console.print(Text(line))


def epoch_line(measurement: Measurement, epochs: int | None) -> str:
    """An epoch in a line: the metrics, the training loss, the time so far."""
    of = f"/{epochs}" if epochs else ""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in measurement.metrics.items())
    took = human_seconds(measurement.train_seconds + measurement.evaluation_seconds)
    return f"epoch {measurement.epoch}{of}: {metrics}, training loss {measurement.train_loss:.4f}, {took}"
