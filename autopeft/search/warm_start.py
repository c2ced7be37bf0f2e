"""What a study believes of its learned objective when other studies came before it.

Three kinds of processes stand side by side: one that knows this study alone (cold), one that learns what is left of the
sources' expectations (the residual), and one that takes each source's expectation as one more input, which its length-
scales drop when it tells nothing. All predict every observation from the others, and the better one orders these, the
larger its share of the belief. The residual is best with few observations and a source that is near; the inputs also
serve a source that is wrong in a way that can be learned; beside one that misleads in no such way the cold process
takes over, and the search goes on as if it had begun cold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from autopeft.objectives.pareto import Array
from autopeft.search.ranking import LeftOut, agreement, chances_of_best_order, left_out
from autopeft.search.source_model import SourceModel
from autopeft.search.surrogate import Averaged, SurrogateError, fit, mixed

_BELIEVED = 3.0
"""Observations that the sources' right to be believed counts for."""
_PRIOR_CORRELATION = 0.8
_LEVEL_SCALE = 2.0
"""Length-scale to expect of a source's level, which is about in [0, 1]."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """Processes of this study's observations that know what its sources expect."""

    processes: Averaged
    sources: tuple[SourceModel, ...]
    slopes: Array | None
    """`[k]` what is added for a level of each source; None where the levels are inputs."""

    def posteriors(self, x: Array) -> tuple[Array, Array]:
        """As `Averaged.posteriors`, `x` being this study's features alone."""
        levels = levels_of(self.sources, x)
        if self.slopes is None:
            return self.processes.posteriors(np.column_stack([x, levels]))
        means, deviations = self.processes.posteriors(x)
        return means + levels @ self.slopes, deviations

    def fantasise(self, x: Array) -> "Transferred":
        """As `Averaged.fantasise`."""
        inputs = x if self.slopes is not None else np.column_stack([x, levels_of(self.sources, x)])
        return Transferred(processes=self.processes.fantasise(inputs), sources=self.sources, slopes=self.slopes)

    def left_out(self, x: Array) -> LeftOut:
        """`ranking.left_out` of this study's observations, which are at `x`."""
        means, deviations = left_out(self.processes.each)
        return (means if self.slopes is None else means + levels_of(self.sources, x) @ self.slopes), deviations

    def some(self, k: int) -> "Transferred":
        """The same with `k` of its processes."""
        return Transferred(processes=some(self.processes, k), sources=self.sources, slopes=self.slopes)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WarmProcess:
    """Cold and transferred processes, all counting alike; stands where an `Averaged` would."""

    cold: Averaged | None
    """None where none of them is left."""
    transferred: tuple[Transferred, ...]

    @property
    def share(self) -> float:
        """Of the transferred processes among all, in (0, 1]."""
        n = sum(len(one.processes.each) for one in self.transferred)
        return n / (n + (len(self.cold.each) if self.cold else 0))

    def posteriors(self, x: Array) -> tuple[Array, Array]:
        """`[s, q]` means and deviations at `x` `[q, d]`, a row for each process."""
        found = [part.posteriors(x) for part in (*self.transferred, self.cold) if part]
        return np.vstack([means for means, _ in found]), np.vstack([deviations for _, deviations in found])

    def posterior(self, x: Array) -> tuple[Array, Array]:
        """`[q]` means and `[q]` deviations of the equal mixture of all."""
        return mixed(*self.posteriors(x))

    def fantasise(self, x: Array) -> "WarmProcess":
        """Each process had each of `x` `[q, d]` been observed at that process's mean.

        Raises:
            SurrogateError: A kernel matrix became singular.
        """
        return WarmProcess(
            cold=self.cold.fantasise(x) if self.cold else None,
            transferred=tuple(one.fantasise(x) for one in self.transferred),
        )


def levels_of(sources: Sequence[SourceModel], x: Array) -> Array:
    """`[q, k]` what each of k sources expects at `x` `[q, d]`."""
    return np.column_stack([source.level(x) for source in sources])


def transferred(
    x: Array, y: Array, sources: Sequence[SourceModel], *, seed: int, typical: Array | None = None
) -> tuple[Transferred, ...]:
    """The processes after outcomes `y` `[n]` at `x` `[n, d]`: of the residual, if there is one, and with inputs.

    Raises:
        SurrogateError: A fit failed.
    """
    levels, known = levels_of(sources, x), tuple(sources)
    slopes = _slopes(levels, y)
    scales = None if typical is None else np.append(typical, np.full(levels.shape[1], _LEVEL_SCALE))
    inputs = fit(np.column_stack([x, levels]), y, seed=seed, typical=scales)
    found = [Transferred(processes=inputs, sources=known, slopes=None)]
    if slopes.any():
        rest = fit(x, y - levels @ slopes, seed=seed, typical=typical)
        found.insert(0, Transferred(processes=rest, sources=known, slopes=slopes))
    return tuple(found)


def with_sources(
    cold: Averaged, x: Array, y: Array, sources: Sequence[SourceModel], *, seed: int, typical: Array | None = None
) -> Averaged | WarmProcess:
    """The belief `cold` after outcomes `y` `[n]` at `x` `[n, d]`, with what the sources say; itself without sources.

    Cost: two fits more than the cold one.
    """
    if not sources:
        return cold
    try:
        warm = transferred(x, y, sources, seed=seed, typical=typical)
    except SurrogateError:
        return cold
    parts = [left_out(cold.each), *(one.left_out(x) for one in warm)]
    n_cold, *counts = apportioned(chances_of_best_order(parts, y, seed=seed), len(cold.each))
    kept = tuple(one.some(k) for one, k in zip(warm, counts, strict=True) if k)
    return WarmProcess(cold=some(cold, n_cold) if n_cold else None, transferred=kept) if kept else cold


def apportioned(shares: Array, n: int) -> list[int]:
    """`n` in whole numbers by `shares`, which sum to 1; what is over goes to the largest remainders."""
    counts = np.floor(shares * n).astype(int)
    for index in np.argsort(counts - shares * n, kind="stable")[: n - counts.sum()]:
        counts[index] += 1
    return [int(count) for count in counts]


def some(processes: Averaged, k: int) -> Averaged:
    """`k` of the processes, evenly spread over the draws."""
    rows = np.linspace(0, len(processes.each) - 1, k).round().astype(int)
    return Averaged(each=tuple(processes.each[row] for row in rows))


def _slopes(levels: Array, y: Array) -> Array:
    """`[k]` by how much `y` `[n]` grows with the level `[n, k]` of each source, sources that agree with it counting.

    The mean of the agreeing sources' standardised levels, times the outcomes' deviation, times their correlation, which
    is drawn towards 0.8 by as much as three observations and is not negative.
    """
    n, spreads = len(y), levels.std(axis=0)
    usable = spreads > 1e-9
    agreeing = np.array([max(agreement(column, y), 0.0) for column in levels.T]) * usable
    if not agreeing.sum():
        return np.zeros(levels.shape[1])
    mixed = agreeing / agreeing.sum() / np.where(usable, spreads, 1.0)
    common = levels @ mixed
    if not common.std() or not y.std():
        return np.zeros(levels.shape[1])
    correlation = float(np.corrcoef(common, y)[0, 1])
    believed = max((n * correlation + _BELIEVED * _PRIOR_CORRELATION) / (n + _BELIEVED), 0.0)
    return mixed * believed * float(y.std()) / float(common.std())
