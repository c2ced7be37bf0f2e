"""What a model said of every row of a split: the metrics, and how sure they are.

Letters: N scored items (rows, or the target tokens or tagged words of rows), k numbers kept of each.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from autopeft.errors import DivergedError
from autopeft.objectives.interval import Interval, bootstrap, resampled, wilson
from autopeft.trainers.metrics import FloatArray, IntArray
from autopeft.trainers.task_kind import Task

if TYPE_CHECKING:
    import torch

DRAWS = 400
"""Resampled scores that a confirmation keeps of a training."""


@final
class Collector:
    """Gathers what a model says of a split, batch by batch, without waiting for the device."""

    def __init__(self, task: Task, metrics: tuple[str, ...]) -> None:
        self._task = task
        self._metrics = metrics
        self._statistics: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []
        self._rows: list[IntArray] = []

    def add(self, outputs: "torch.Tensor", targets: "torch.Tensor", rows: IntArray) -> None:
        """Take in a batch: what `task.outputs` gives, and the row of the split that each item belongs to."""
        self._statistics.append(self._task.statistics(outputs, targets))
        self._targets.append(targets)
        self._rows.append(rows)

    def scores(self, extra: dict[str, float] | None = None) -> "Scores":
        """All batches together."""
        import torch

        return Scores(
            task=self._task,
            metrics=self._metrics,
            statistics=torch.cat(self._statistics).cpu().numpy().astype(np.float64),
            targets=torch.cat(self._targets).cpu().numpy().astype(np.float64),
            rows=np.concatenate(self._rows),
            extra=extra or {},
        )


@final
@dataclass(frozen=True, kw_only=True)
class Scores:
    """A scored split."""

    task: Task
    metrics: tuple[str, ...]
    statistics: FloatArray
    """`[N, k]`, what `task.score` takes; logits where an item has a class."""
    targets: FloatArray
    """`[N]`."""
    rows: IntArray
    """`[N]`, the row of the split that each item belongs to."""
    extra: dict[str, float] = field(default_factory=dict)
    """Numbers that were measured on the way."""

    @cached_property
    def values(self) -> dict[str, float]:
        """The metrics by name, `loss`, and `extra`.

        Raises:
            DivergedError: A prediction is NaN or infinite.
        """
        return self.task.score(self.metrics, self.statistics, self.targets) | self.extra

    @property
    def n_rows(self) -> int:
        return len(np.unique(self.rows))

    def interval(self, name: str) -> Interval:
        """95 % interval of the metric `name`.

        Wilson's for the accuracy of a split with one item a row; else bootstrapped over rows, whose items stay
        together, for the tokens of one text are not independent.
        """
        n = self.n_rows
        if name == "accuracy" and len(self.rows) == n:
            return wilson(self.values[name], n)
        return bootstrap(self._score_of_rows(name), n)

    def draws(self, name: str, n: int = DRAWS) -> tuple[float, ...]:
        """The metric `name` on the split's rows drawn again with replacement, `n` times, to six digits.

        Draw i takes the same rows whatever model was scored, so two models' draws differ by what the models differ.
        """
        found = resampled(self._score_of_rows(name), self.n_rows, resamples=n)
        return tuple(float(f"{value:.6g}") for value in found)

    def _score_of_rows(self, name: str) -> Callable[[IntArray], float]:
        """The metric of some rows, each with all its items; infinite where it has no finite value."""
        order = np.argsort(self.rows, kind="stable")
        starts = np.flatnonzero(np.diff(self.rows[order], prepend=-1))
        groups = np.split(order, starts[1:])

        def score(drawn: IntArray) -> float:
            items = np.concatenate([groups[row] for row in drawn])
            try:
                return self.task.score((name,), self.statistics[items], self.targets[items])[name]
            except DivergedError:
                return float("inf")

        return score

    def intervals(self) -> dict[str, Interval]:
        """Of every metric but the loss."""
        return {name: self.interval(name) for name in self.metrics}

    def largest_difference(self, other: "Scores") -> float:
        """Of a number kept of any item, between two scorings of one split."""
        return float(np.abs(self.statistics - other.statistics).max())
