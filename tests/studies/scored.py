"""A trainer without a model whose scores follow from configuration and seed, on validation and held-out rows alike."""

import os
from collections.abc import Iterator

import numpy as np

from autopeft.objectives.measurement import Measurement
from autopeft.spaces.configuration import Configuration
from autopeft.trainers.job import AbstractTrainer, ModelSpec, Report, TaskSpec, TrainingSettings, TrainJob

ROWS = 400
DRAWS = 50


class ScoredTrainer(AbstractTrainer):
    """Skill grows with the sum of sizes; 400 held-out rows of unequal difficulty, the same for every model.

    The environment variable SCORED_FAILS names a part of a configuration's id whose training with any of a
    confirmation's seeds diverges.
    """

    def __init__(self, model: ModelSpec, task: TaskSpec, training: TrainingSettings) -> None:
        self._metric = task.metric

    def run(self, job: TrainJob) -> Iterator[Report]:
        for slot, (configuration, seed) in enumerate(zip(job.configurations, job.seeds, strict=True)):
            fails = os.environ.get("SCORED_FAILS")
            if fails and fails in configuration.id and job.evaluate_test:
                failure = ("diverged", "as told")
                yield Report(slot=slot, measurement=None, failure=failure, done=True)
                continue
            for epoch in range(1, job.epochs + 1):
                yield self._report(job, slot, configuration, seed=seed, epoch=epoch)

    def close(self) -> None:
        return

    def _report(self, job: TrainJob, slot: int, configuration: Configuration, *, seed: int, epoch: int) -> Report:
        done, rng = epoch == job.epochs, np.random.default_rng(seed)
        skill = 0.3 * np.log1p(size_of(configuration)) + 0.1 * rng.normal()
        right = skill + 0.3 * rng.normal(size=ROWS) > np.random.default_rng(0).normal(size=ROWS)
        drawn = np.random.default_rng(1).integers(ROWS, size=(DRAWS, ROWS))
        return Report(
            slot=slot,
            measurement=_measured(configuration, epoch, {self._metric: float(right[: ROWS // 2].mean())}),
            done=done,
            test_metrics={self._metric: float(right.mean())} if done and job.evaluate_test else {},
            test_draws=tuple(right[drawn].mean(axis=1)) if done and job.evaluate_test else (),
        )


def size_of(configuration: Configuration) -> int:
    """Ranks and bottlenecks of all layers together."""
    sizes = [value for method in configuration for name, column in method.fields for value in column if name != "alpha"]
    return sum(value for value in sizes if isinstance(value, int))


def _measured(configuration: Configuration, epoch: int, metrics: dict[str, float]) -> Measurement:
    size = size_of(configuration)
    return Measurement(
        epoch=epoch,
        metrics=metrics,
        train_loss=1.0 / epoch,
        train_seconds=0.5 * epoch,
        evaluation_seconds=0.1 * epoch,
        tokens=100 * epoch,
        peak_bytes=1000 * size,
        parameters=96 * size,
    )


class FailingTrainer(ScoredTrainer):
    """Every configuration diverges."""

    def run(self, job: TrainJob) -> Iterator[Report]:
        for slot in range(len(job.configurations)):
            yield Report(slot=slot, measurement=None, failure=("diverged", "as told"), done=True)
