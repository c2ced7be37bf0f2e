"""Which trials fit the memory that one job has, from what their peaks were predicted and measured to be."""

from collections.abc import Iterable
from dataclasses import dataclass

from autopeft.objectives.residual import CONFIDENCE, MARGIN, Residual
from autopeft.search.trial import Failure, FailureKind, Trial
from autopeft.studies.describe import human_bytes
from autopeft.studies.executor import Resources

CONTEXT_BYTES = 512 * 2**20
"""What a CUDA driver and its libraries take of a device before anything is allocated; between 300 and 600 MiB."""
_REFUSED = "not started: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Memory of one job, and how sure it must be that a trial stays within it."""

    n_bytes: float
    confidence: float = CONFIDENCE

    @property
    def constraint(self) -> str:
        """What a search space must hold to: the prediction with the margin of a study that has measured nothing."""
        return f"memory <= {int(self.n_bytes / (1.0 + MARGIN))}B"

    def refusal(self, predicted: float | None, trials: Iterable[Trial]) -> Failure | None:
        """Why a configuration that is predicted to take `predicted` bytes is not started; None where it is.

        Args:
            predicted: None where nothing predicts it.
            trials: Of the study so far.
        """
        if predicted is None:
            return None
        residual = residual_of(trials)
        if residual.fits(predicted, self.n_bytes, confidence=self.confidence):
            return None
        bound = predicted * residual.upper(confidence=self.confidence)
        why = "as much has run out of memory" if predicted >= residual.ceiling else f"up to {human_bytes(bound)}"
        message = f"{_REFUSED}predicted {human_bytes(predicted)}, {why}; a job has {human_bytes(self.n_bytes)}"
        return Failure(kind=FailureKind.OOM, message=message)

    def fits_together(self, predicted: Iterable[float], *, shared: float, trials: Iterable[Trial]) -> bool:
        """Whether trials that share a base of `shared` bytes, and are predicted to take so much alone, fit at once.

        The sum of the upper bounds of what each adds to the base: peaks rarely meet, so this errs on the safe side.
        """
        factor = residual_of(trials).upper(confidence=self.confidence)
        return shared + sum(max(0.0, factor * one - shared) for one in predicted) <= self.n_bytes


def residual_of(trials: Iterable[Trial]) -> Residual:
    """What the trials' measured peaks say of their predictions; those that were never started say nothing."""
    pairs: list[tuple[float, float]] = []
    failed: list[float] = []
    for trial in trials:
        predicted = trial.predicted.get("memory")
        if predicted is None:
            continue
        if trial.final is not None:
            pairs.append((float(trial.final.peak_bytes), predicted))
        elif trial.failure is not None and trial.failure.kind is FailureKind.OOM and not refused(trial.failure):
            failed.append(predicted)
    return Residual.of(pairs, failed=failed)


def refused(failure: Failure) -> bool:
    """Whether the trial was never started."""
    return failure.message.startswith(_REFUSED)


def capacity_of(resources: Resources) -> Capacity | None:
    """The memory of one job: what the study file says, else its share of a CUDA device here, else None."""
    if resources.memory_per_job is not None:
        return Capacity(n_bytes=resources.memory_per_job, confidence=resources.memory_confidence)
    import torch

    if not torch.cuda.is_available() or resources.gpus_per_job == 0:
        return None
    share = min(resources.gpus_per_job or 1.0, 1.0)
    total = torch.cuda.get_device_properties(0).total_memory
    free = share * total - CONTEXT_BYTES - resources.prefix_cache
    return Capacity(n_bytes=free, confidence=resources.memory_confidence)
