"""A trainer without a model: an instant, smooth stand-in with a front that is known, for searchers and the runner."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import final

import numpy as np

from autopeft.errors import SpecError
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import METRICS, Direction
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.job import AbstractSlots, AbstractTrainer, Report, TrainJob
from autopeft.trainers.slots import Entries, Entry

FAILURES = ("oom", "diverged", "timeout", "crashed")

EFFICIENCY: Mapping[str, float] = {
    "lora": 1.0,
    "parallel_adapter": 0.9,
    "serial_adapter": 0.75,
    "prefix_tuning": 0.5,
}
"""What one parameter of each method is worth; other methods count as 0.6."""

LEARNING_RATE = 2e-3
"""The best learning rate; a factor of ten away costs about two thirds of the quality."""

_BATCH_SIZE = 32
_LENGTH = 64
_ROWS = 1000
_KEPT = 12
"""Values of the hidden width that a layer keeps of each token, from the lowest adapted layer on."""
_STATE = 4
"""Numbers that come with each trained one, itself among them."""


@final
class SyntheticTrainer(AbstractTrainer):
    """Scores configurations by a formula.

    Every layer saturates in the parameters it is given, later layers weigh more, and the learning rate has one optimum:
    quality = learning-rate factor * sum over layers of weight * (1 - exp(-capacity)). Parameters are those
    of the real objective and memory grows with them and with the depth of the lowest adapted layer, so the front trades
    them against the metric as a real one does.

    Args:
        shape: The base model that configurations are for.
        metric: A task metric; quality moves it between chance and a ceiling, in the direction that is better.
        noise: Standard deviation of the metric, as a share of its range; drawn from each trial's seed.
        fail: Failure kind by configuration id; these configurations fail instead.
        failure_rate: Share of all configurations that fail besides, with a kind drawn from their id.
        epoch_seconds: Seconds each epoch sleeps.

    Raises:
        SpecError: An unknown metric or failure kind, a negative noise, a rate outside [0, 1].
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        metric: str = "accuracy",
        noise: float = 0.0,
        fail: Mapping[str, str] | None = None,
        failure_rate: float = 0.0,
        epoch_seconds: float = 0.0,
    ) -> None:
        kinds = set((fail or {}).values()) - set(FAILURES)
        if kinds:
            raise SpecError(f"fail: got {sorted(kinds)[0]!r}; allowed are {', '.join(FAILURES)}")
        if metric not in METRICS:
            raise SpecError(f"metric: got {metric!r}; allowed are {', '.join(METRICS)}")
        if noise < 0.0 or not 0.0 <= failure_rate <= 1.0:
            raise SpecError(f"noise: got {noise}, failure_rate: got {failure_rate}; 0 or more, and from 0 to 1")
        self._shape = shape
        self._metric = metric
        self._noise = noise
        self._fail = dict(fail or {})
        self._failure_rate = failure_rate
        self._epoch_seconds = epoch_seconds

    @property
    def shape(self) -> ModelShape:
        """The base model's shape."""
        return self._shape

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        """One report a configuration and epoch, as a real trainer gives them."""
        entries = Entries(job, slots)
        for entry in entries.in_turn():
            for report in self._reports(entry):
                yield report
                if not report.done and entries.stopped(entry.slot):
                    break

    def _reports(self, entry: Entry) -> Iterator[Report]:
        configuration, seed, job = entry.configuration, entry.seed, entry.job
        kind = self._failure(configuration)
        if kind is not None:
            yield Report(slot=entry.slot, measurement=None, failure=(kind, f"synthetic {kind}"), done=True)
            return
        for epoch in range(1, job.epochs + 1):
            if self._epoch_seconds:
                time.sleep(self._epoch_seconds)
            done = epoch == job.epochs
            tests = {self._metric: self.value(configuration, seed=seed, draw=0)} if done and job.evaluate_test else {}
            measurement = self._measure(configuration, seed=seed, epoch=epoch)
            yield Report(slot=entry.slot, measurement=measurement, done=done, test_metrics=tests)

    def close(self) -> None:
        """Nothing to free."""

    def quality(self, configuration: Configuration) -> float:
        """Quality of a fully trained configuration without noise, in [0, 1)."""
        n_layers = self._shape.n_layers
        weights = np.linspace(1.0, 2.0, n_layers)
        capacity = np.zeros(n_layers)
        parameters = count_parameters(configuration, self._shape)
        for (method, layer), count in parameters.cells.items():
            capacity[layer] += EFFICIENCY.get(method, 0.6) * count / (8 * self._shape.hidden_size)
        reached = float(weights @ (1.0 - np.exp(-capacity)) / weights.sum())
        shared = float(dict(configuration.training).get("learning_rate", LEARNING_RATE))
        loss = 0.0
        for setting in configuration:
            rate = shared if setting.learning_rate is None else setting.learning_rate
            share = parameters.by_method[setting.method] / parameters.total
            loss += share * math.log10(rate / LEARNING_RATE) ** 2
        return reached * math.exp(-loss)

    def value(self, configuration: Configuration, *, seed: int | None = None, draw: int = 1, epoch: int = 0) -> float:
        """The metric: chance with no quality, its ceiling with full quality.

        Args:
            configuration: What is scored.
            seed: Of the noise; None adds none.
            draw: Which draw of that seed's noise.
            epoch: Epochs trained; 0 means until nothing is gained any more.
        """
        progress = 1.0 - 0.5**epoch if epoch else 1.0
        quality = self.quality(configuration) * progress
        if seed is not None and self._noise:
            quality += self._noise * float(np.random.default_rng([seed, draw]).normal())
        if METRICS[self._metric].direction is Direction.MINIMIZE:
            return 30.0 * math.exp(-2.0 * quality)
        return float(np.clip(0.5 + 0.45 * quality, 0.0, 1.0))

    def _measure(self, configuration: Configuration, *, seed: int, epoch: int) -> Measurement:
        value = self.value(configuration, seed=seed, draw=epoch, epoch=epoch)
        loss = 1.0 - self.quality(configuration) * (1.0 - 0.5**epoch)
        depth = self._shape.n_layers - min(configuration.adapted_layers, default=self._shape.n_layers)
        parameters = count_parameters(configuration, self._shape).total
        kept = depth * _KEPT * self._shape.hidden_size * _BATCH_SIZE * _LENGTH
        return Measurement(
            epoch=epoch,
            metrics={self._metric: value, "loss": loss},
            train_loss=loss,
            train_seconds=epoch * (1.0 + depth / self._shape.n_layers),
            evaluation_seconds=0.1 * epoch,
            tokens=epoch * _ROWS * _LENGTH,
            peak_bytes=4 * (self._shape.base_parameters + _STATE * parameters + kept),
            parameters=parameters,
            head_parameters=2 * (self._shape.hidden_size + 1),
        )

    def _failure(self, configuration: Configuration) -> str | None:
        if configuration.id in self._fail:
            return self._fail[configuration.id]
        digest = hashlib.sha256(f"failure {configuration.id}".encode()).digest()
        share = int.from_bytes(digest[:4], "big") / 2**32
        return FAILURES[digest[4] % len(FAILURES)] if share < self._failure_rate else None
