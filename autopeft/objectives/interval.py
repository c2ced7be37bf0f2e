"""How far a score on a few rows may be from the score on all rows of its kind."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000

Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval of one number."""

    low: float
    high: float
    method: str
    """`wilson` or `bootstrap`."""
    level: float
    rows: int
    """Rows it comes from."""

    def to_json(self) -> dict[str, object]:
        """An infinite end is null."""
        low, high = (end if math.isfinite(end) else None for end in (self.low, self.high))
        return {"low": low, "high": high, "method": self.method, "level": self.level, "rows": self.rows}


def wilson(share: float, n: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of the share of `n` independent rows; inside [0, 1] and not empty at the ends.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n))
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half), method="wilson", level=level, rows=n)


def bootstrap(
    score: Callable[[Indices], float], n: int, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of `score` over rows drawn again with replacement.

    Args:
        score: The metric of the rows at these indices (each in [0, n), some several times).
        n: Rows.
        level: Share of the resampled scores inside the interval.
        resamples: How often rows are drawn; the cost is that many calls of `score`.
        seed: Of the draws: equal input gives equal intervals.
    """
    scores = resampled(score, n, resamples=resamples, seed=seed)
    # The nearest score, not one between two: a perplexity may be infinite.
    low, high = np.quantile(scores, [0.5 - level / 2.0, 0.5 + level / 2.0], method="nearest")
    return Interval(low=float(low), high=float(high), method="bootstrap", level=level, rows=n)


def resampled(score: Callable[[Indices], float], n: int, *, resamples: int, seed: int = 0) -> list[float]:
    """`score` of `n` rows drawn again with replacement, `resamples` times.

    Which rows a draw takes follows from `n` and `seed` alone: draws of two models scored on the same rows are paired.
    """
    generator = np.random.default_rng(seed)
    return [score(generator.integers(n, size=n)) for _ in range(resamples)]
