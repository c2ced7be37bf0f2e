"""How measured peaks differ from predicted ones, learned within one study, and how far the next may exceed its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MARGIN = 0.05
"""What a peak may exceed its prediction by while nothing is measured."""
CONFIDENCE = 0.95
"""Share of the trials whose peak stays below the bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """Ratios of measured to predicted peaks; a function of those alone, whatever their order."""

    logs: tuple[float, ...] = ()
    """Ascending logarithms of the ratios."""
    ceiling: float = math.inf
    """The least prediction of a trial that ran out of memory: as much or more will not fit either."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]], *, failed: Sequence[float] = ()) -> "Residual":
        """From (measured, predicted) of trials that trained, and the predictions of those that ran out of memory."""
        logs = tuple(
            sorted(math.log(measured / predicted) for measured, predicted in pairs if min(measured, predicted) > 0)
        )
        return cls(logs=logs, ceiling=min(failed, default=math.inf))

    @property
    def ratio(self) -> float:
        """The median of measured over predicted, 1 when nothing is measured."""
        return math.exp(float(np.median(self.logs))) if self.logs else 1.0

    def upper(self, *, confidence: float = CONFIDENCE) -> float:
        """Factor on a prediction that the next peak stays below with this confidence.

        With n ratios exchangeable with the next one, that is below the k-th smallest with a chance of at least
        k / (n + 1) (split conformal prediction). While n is too small for any k to reach `confidence`, it is the
        largest one and a margin above it, which shrinks as n grows.
        """
        n = len(self.logs)
        k = math.ceil(confidence * (n + 1))
        if 0 < k <= n:
            return math.exp(self.logs[k - 1])
        missing = 1.0 - n / math.ceil(confidence / (1.0 - confidence))
        return math.exp(max(self.logs, default=0.0)) * (1.0 + MARGIN * missing)

    def fits(self, predicted: float, capacity: float, *, confidence: float = CONFIDENCE) -> bool:
        """Whether a configuration predicted to take `predicted` bytes stays within `capacity`."""
        return predicted < self.ceiling and predicted * self.upper(confidence=confidence) <= capacity
