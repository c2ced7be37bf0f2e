"""How sure a mean over a few seeds on one test split is, and whether one configuration really beats another.

A score on the held-out split varies for two reasons that have nothing to do with the configuration: the seed it was
trained from, and which rows happen to be in the split. Both are estimated and added; docs/confirm.md says it at length.

- Seeds: every configuration is trained from the same seeds, so that two are compared seed by seed, without what a seed
  does to all alike. The variance of their differences is their own, drawn towards that of other pairs as far as these
  agree (`moderation`): one that fails from a seed does not blur the others. A mean has the variance of its own scores.
- Rows: every scoring comes with its metric on rows drawn again with replacement, the same draws for all, so that the
  variance over draws of a difference is that of the difference.

The chance that one is better is Student's distribution of their difference over its error, with the degrees of freedom
of Satterthwaite: a posterior under flat priors, and one minus the one-sided p-value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from autopeft.objectives.objective import Objective
from autopeft.objectives.pareto import Array
from autopeft.studies.moderation import moderated

LEVEL = 0.95
SURE = 0.95
"""Chance from which on a difference is no longer called noise."""
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("accuracy", "f1", "micro_f1"), (0.0, 1.0)),
    **dict.fromkeys(("matthews", "pearson", "spearman"), (-1.0, 1.0)),
    "perplexity": (1.0, float("inf")),
}
"""Values that a metric can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One training, scored on the held-out split."""

    value: float
    draws: tuple[float, ...] = ()
    """The metric on rows drawn again; empty when only the metric is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The mean score of a configuration over seeds, with its 95 % interval."""

    mean: float
    std: float
    """Standard deviation over seeds (n - 1); 0.0 for one."""
    low: float
    high: float
    seeds: int

    def to_json(self) -> dict[str, float]:
        return {"mean": self.mean, "std": self.std, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much better one configuration is than another, in the metric's unit; above 0 is better."""

    mean: float
    low: float
    high: float
    chance: float
    """That the true difference is above 0, in [0, 1]."""
    shown: float
    """The smallest difference that these seeds and rows could have told from 0."""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `noise`."""
        if self.chance >= SURE:
            return "better"
        return "worse" if self.chance <= 1.0 - SURE else "noise"

    def to_json(self) -> dict[str, object]:
        numbers = {"mean": self.mean, "low": self.low, "high": self.high, "chance": self.chance, "shown": self.shown}
        return {**numbers, "verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variance:
    """Of a mean, as a sum of independent parts."""

    parts: tuple[tuple[float, float], ...]
    """(variance, degrees of freedom) of each."""

    @property
    def total(self) -> float:
        return sum(variance for variance, _ in self.parts)

    @property
    def freedom(self) -> float:
        """Satterthwaite 1946: total^2 over the sum of each part^2 over its degrees of freedom."""
        below = sum(variance**2 / freedom for variance, freedom in self.parts if freedom > 0)
        return self.total**2 / below if below > 0 else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Scores of several configurations, each trained from the same seeds and scored on the same rows."""

    objective: Objective
    """The metric."""
    names: tuple[str, ...]
    values: Array
    """`[j, k]`: configurations by seeds."""
    draws: Array
    """`[j, r]`: means over seeds of the metric on rows drawn again; r = 0 when not known."""

    @classmethod
    def of(cls, objective: Objective, scores: Mapping[str, Sequence[Score]]) -> "Panel":
        """The panel of `scores`, each with one score a seed, in the same order; at least one configuration and seed."""
        values = np.array([[score.value for score in row] for row in scores.values()], dtype=np.float64)
        length = min(len(score.draws) for row in scores.values() for score in row)
        draws = [[score.draws[:length] for score in row] for row in scores.values()]
        rows = np.array(draws, dtype=np.float64).reshape(*values.shape, length)
        return cls(objective=objective, names=tuple(scores), values=values, draws=rows.mean(axis=1))

    @property
    def seeds(self) -> int:
        return self.values.shape[1]

    def estimate(self, name: str) -> Estimate:
        """The mean of a configuration; its interval is endless with one seed and no other knowledge of seeds."""
        row = self.values[self.names.index(name)]
        mean, half = float(row.mean()), self._half(self._mean_variance(name))
        least, most = RANGES.get(self.objective.name, (-np.inf, np.inf))
        return Estimate(
            mean=mean,
            std=float(row.std(ddof=1)) if len(row) > 1 else 0.0,
            low=max(least, mean - half),
            high=min(most, mean + half),
            seeds=len(row),
        )

    def difference(self, name: str, other: str) -> Difference:
        """How much better `name` is than `other`."""
        a, b = self.names.index(name), self.names.index(other)
        sign = -self.objective.to_loss(1.0)
        mean = sign * float((self.values[a] - self.values[b]).mean())
        variance = self._difference_variance(a, b)
        half = self._half(variance)
        return Difference(
            mean=mean,
            low=mean - half,
            high=mean + half,
            chance=_chance_above_zero(mean, variance),
            shown=half,
        )

    def _mean_variance(self, name: str) -> _Variance:
        """Of a mean over seeds: that of its own scores; and rows."""
        place, k = self.names.index(name), self.seeds
        spread = float(self.values[place].var(ddof=1)) if k > 1 else np.inf
        return self._with_rows([(spread / k, k - 1.0)], self.draws[place])

    def _difference_variance(self, a: int, b: int) -> _Variance:
        """Of a mean difference over seeds: that of the differences seed by seed; and rows."""
        variance, freedom = self._pairs().get((min(a, b), max(a, b)), (0.0, 1.0))
        return self._with_rows([(variance / self.seeds, freedom)], self.draws[a] - self.draws[b])

    def _pairs(self) -> Mapping[tuple[int, int], tuple[float, float]]:
        """Variance between seeds of every difference of two configurations, and its degrees of freedom.

        Differences that have one configuration in common have a correlation of a half, their variances of a quarter.
        """
        n, k = self.values.shape
        pairs = list(combinations(range(n), 2))
        if k < 2:
            return dict.fromkeys(pairs, (np.inf, 0.0))
        variances = np.array([(self.values[a] - self.values[b]).var(ddof=1) for a, b in pairs])
        shared = (n - 2) / (len(pairs) - 1) / 2 if n > 2 else 0.0
        found = moderated(variances, k - 1.0, most=(n - 1.0) * (k - 1), correlation=shared)
        return {pair: (float(v), float(f)) for pair, v, f in zip(pairs, *found, strict=True)}

    def _with_rows(self, parts: Sequence[tuple[float, float]], draws: Array) -> _Variance:
        rows = [(float(draws.var(ddof=1)), len(draws) - 1.0)] if len(draws) > 1 else []
        return _Variance(parts=tuple(part for part in (*parts, *rows) if part[0] > 0 or not np.isfinite(part[0])))

    def _half(self, variance: _Variance) -> float:
        """Half the width of the interval."""
        from scipy.special import stdtrit

        total = variance.total
        if not np.isfinite(total):
            return float("inf")
        return float(stdtrit(variance.freedom, 0.5 + LEVEL / 2.0) * np.sqrt(total)) if total > 0 else 0.0


def _chance_above_zero(mean: float, variance: _Variance) -> float:
    from scipy.special import stdtr

    total = variance.total
    if not np.isfinite(total):
        return 0.5
    if total == 0:
        return 0.5 if mean == 0 else float(mean > 0)
    return float(stdtr(variance.freedom, mean / np.sqrt(total)))
