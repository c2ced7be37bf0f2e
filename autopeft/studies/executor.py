"""How jobs get to workers: the interface of every executor and what it is told."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autopeft.errors import SpecError
from autopeft.search.trial import FailureKind
from autopeft.studies.signals import StopRequest
from autopeft.trainers.job import ModelSpec, Report, TaskSpec, TrainingSettings, TrainJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the machine gives to one job, and how many jobs run at once."""

    max_jobs: int | None = None
    """Jobs at once; None takes as many as fit."""
    cpus_per_job: int = 1
    gpus_per_job: float | None = None
    """Whole or a fraction of one; None takes one where there is a GPU and none where there is not."""
    executor: Literal["ray", "local"] = "ray"
    trials_per_job: int | None = None
    """Trials that share a worker's base model and train at once; None takes what suits the device."""
    trial_deadline_seconds: float | None = None
    """A trial that runs longer is stopped and fails as `timeout`; None lets it run."""
    memory_per_job: int | None = None
    """Bytes that one job may take; None takes a CUDA device's, and sets no limit on a CPU."""
    memory_confidence: float = 0.95
    """How sure it must be that a trial's peak stays within that before it is started."""
    prefix_cache: int = 1 << 30
    """Bytes that each worker may keep of what the layers below the lowest adapted one make of the rows; 0 for none."""
    address: str | None = None
    """Of a running Ray cluster (`host:port`, `auto`); None starts Ray on this machine."""

    def __post_init__(self) -> None:
        """Refuse numbers that no machine can give.

        Raises:
            SpecError: A count below one, a negative share, or a share of several GPUs that is not whole.
        """
        if self.max_jobs is not None and self.max_jobs < 1:
            raise SpecError(f"resources.max_jobs: got {self.max_jobs}; 1 or more", hint="leave it out to use all cores")
        if self.cpus_per_job < 1:
            raise SpecError(f"resources.cpus_per_job: got {self.cpus_per_job}; 1 or more", hint="use 1")
        if self.trials_per_job is not None and self.trials_per_job < 1:
            raise SpecError(
                f"resources.trials_per_job: got {self.trials_per_job}; 1 or more", hint="use auto, or 1 for none beside"
            )
        if not 0.0 < self.memory_confidence < 1.0:
            raise SpecError(
                f"resources.memory_confidence: got {self.memory_confidence:g}; between 0 and 1", hint="0.95 suits most"
            )
        gpus = self.gpus_per_job or 0.0
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise SpecError(
                f"resources.gpus_per_job: got {gpus:g}; between 0 and 1, or a whole number",
                hint="0.5 puts two jobs on a GPU, 2 gives each job two",
            )
        if self.address is not None and "://" in self.address:
            raise SpecError(
                f"resources.address: got {self.address!r}; host:port or auto",
                hint="start the search on a machine of the cluster, with address: auto",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a worker builds its trainer from; small, picklable, the same for every job of a study."""

    trainer: str
    """Where the trainer class is: `package.module:Name`; called with (model, task, training)."""
    model: ModelSpec
    task: TaskSpec
    training: TrainingSettings
    threads: int | None = None
    """Threads a worker's linear algebra may use; None leaves the library's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One job for one worker, and the trials its slots stand for."""

    numbers: tuple[int, ...]
    """Trial number of each slot of `job`."""
    job: TrainJob
    deadline_seconds: float | None = None
    """The job may run this long; then it is stopped and its unfinished trials fail as `timeout`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """The worker died under a job (killed, node lost), which its trainer could not report."""

    reason: str
    counted: bool = True
    """False when it cannot have been the trial's doing (its node was taken away)."""


def timeout_report(assignment: Assignment) -> Report:
    """What an executor records for a trial that ran past its deadline."""
    message = f"stopped after the deadline of {assignment.deadline_seconds:g} seconds"
    return Report(slot=0, measurement=None, failure=(FailureKind.TIMEOUT.value, message), done=True)


class AbstractTrialSource(ABC):
    """What an executor sees of a study: the runner, or a stand-in in a test."""

    @abstractmethod
    def propose(self, n: int, *, beside: Sequence[Assignment] = (), more: int = 0) -> list[Assignment]:
        """Up to `n` trials to run now, already durable as running ones. May take long; call it off any event loop.

        They share a worker with each other and with those of `beside`: no more than fit its memory together, and those
        that share most of the base. `more` trials are wanted at the same time for other workers, which will ask next.
        Fewer than `n` while others are in flight: ask again when one of those has finished. None with nothing in
        flight: the study is over. Safe beside `record` from another thread, but one call at a time.
        """

    @abstractmethod
    def record(self, assignment: Assignment, event: Report | WorkerLost) -> bool:
        """Make what a worker said durable. True: this slot goes on; False: it is done or should stop.

        The unfinished trials of a lost worker go back to the queue once; the second time they fail as `crashed`.
        Reports about trials that are finished already are ignored.
        """


class AbstractExecutor(ABC):
    """Runs a source's jobs until it has none left."""

    @abstractmethod
    def run(self, source: AbstractTrialSource, stop: StopRequest) -> None:
        """Run until the source is dry or `stop` is raised; all workers are gone when it returns or raises.

        `stop` at level DRAIN: start nothing new, finish what runs. At level NOW: abandon what runs (those trials
        stay running in the storage and are run again at resume).
        """
