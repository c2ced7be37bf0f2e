"""What runs on a worker: one trainer, built once, and its jobs; whatever a trainer raises becomes a failed trial."""

import importlib
import sys
import traceback
from collections.abc import Generator
from typing import final

from autopeft.errors import SpecError, TrialError
from autopeft.search.trial import FailureKind
from autopeft.studies.executor import WorkerSpec
from autopeft.trainers.job import AbstractSlots, AbstractTrainer, Report, TrainJob


class Worker:
    """A trainer that is built on first use and then kept: base model and data are loaded once."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._trainer: AbstractTrainer | None = None
        self._old_threads: int | None = None

    @property
    def ready(self) -> bool:
        return self._trainer is not None

    def build(self) -> None:
        """Load model and data.

        Raises:
            AutoPeftError: Whatever the trainer found wrong with model, task or data; no trial is to blame.
        """
        if self._trainer is None:
            maker = load_trainer(self._spec.trainer)
            self._trainer = maker(self._spec.model, self._spec.task, self._spec.training)  # type: ignore[call-arg]
            self._limit_threads()

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Generator[Report, None, None]:
        """The job's reports, the last one of every configuration marked `done`; never raises for a trial's fault.

        One that `slots` has stopped ends with the report after which it was.
        """
        self.build()
        assert self._trainer is not None
        given = _Given(len(job.configurations), slots)
        open_slots = given.open
        failure = (FailureKind.CRASHED.value, "the trainer ended without a last report")
        try:
            for report in self._trainer.run(job) if slots is None else self._trainer.run(job, given):
                done = report.done or report.failure is not None
                open_slots -= {report.slot} if done else set()
                yield report
        except Exception as error:  # noqa: BLE001  # a failed configuration is data for the search
            failure = failure_of(error)
        for slot in sorted(open_slots):
            yield Report(slot=slot, measurement=None, failure=failure, done=True)

    def close(self) -> None:
        if self._trainer is not None:
            self._trainer.close()
            self._trainer = None
        if self._old_threads is not None:
            sys.modules["torch"].set_num_threads(self._old_threads)
            self._old_threads = None

    def _limit_threads(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and self._spec.threads is not None:
            self._old_threads = torch.get_num_threads()
            torch.set_num_threads(self._spec.threads)


@final
class _Given(AbstractSlots):
    """Keeps count of what a trainer was given and has not finished."""

    def __init__(self, n: int, slots: AbstractSlots | None) -> None:
        self.open = set(range(n))
        self._next, self._slots = n, slots

    def stopped(self, slot: int) -> bool:
        stopped = self._slots is not None and self._slots.stopped(slot)
        self.open -= {slot} if stopped else set()
        return stopped

    def refill(self) -> TrainJob | None:
        job = None if self._slots is None else self._slots.refill()
        if job is not None:
            self.open.add(self._next)
            self._next += 1
        return job


def load_trainer(path: str) -> type[AbstractTrainer]:
    """The class at `package.module:Name`.

    Raises:
        SpecError: No such module or name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(f"trainer: got {path!r}: {error}", hint="write package.module:ClassName") from error


def failure_of(error: Exception) -> tuple[str, str]:
    """(kind, message) of what a trainer raised: its type, text and the line it came from."""
    if isinstance(error, TrialError):
        return error.kind, str(error)
    text = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    # PyTorch's error is a RuntimeError of this name, which is looked at without importing PyTorch.
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return (FailureKind.OOM if memory else FailureKind.CRASHED).value, text + place
