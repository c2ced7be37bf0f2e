"""What the trials of a past study say of any configuration, and which of them a new study should try first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.pareto import Array, non_dominated
from autopeft.search.past_study import PastStudy
from autopeft.search.surrogate import Averaged, SurrogateError, fit
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

MIN_ROWS = 3
"""Trials below which a past study says nothing."""
_MARGIN = 0.1
"""Beyond the worst point of a front, as a share of its range, where the volume that its points add is bounded."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceModel:
    """A surrogate of one past study on this study's features."""

    past: PastStudy
    process: Averaged
    seen: Array
    """`[n]` posterior means at the study's own trials."""

    @classmethod
    def of(cls, past: PastStudy, space: SearchSpace, *, seed: int) -> "SourceModel":
        """The surrogate fitted to `past`.

        Raises:
            SurrogateError: Fewer than three trials, or the fit failed.
        """
        if len(past.configurations) < MIN_ROWS:
            raise SurrogateError(f"{len(past.configurations)} trials of {past.name}, {MIN_ROWS} are needed")
        x = np.array([space.features(one) for one in past.configurations])
        process = fit(x, past.losses, seed=seed, typical=space.lengthscales)
        return cls(past=past, process=process, seen=process.posterior(x)[0])

    def level(self, x: Array) -> Array:
        """`[q]` expected losses at `x` `[q, d]`, with the best that the study is believed to have seen as 0 and the
        worst as 1. Cost: O(q n).
        """
        low, high = float(self.seen.min()), float(self.seen.max())
        return (self.process.posterior(x)[0] - low) / ((high - low) or 1.0)

    def front(self, n: int) -> tuple[Configuration, ...]:
        """Up to `n` of the study's configurations that should be good here too, the most telling first.

        The non-dominated ones by believed loss and by what they cost on this model; of these, one after another, the
        one that adds most volume to those before it, with every objective scaled to the range of them all.
        """
        losses = np.column_stack([self.seen, self.past.costs])
        rows = np.flatnonzero(np.isfinite(losses).all(axis=1) & np.array(self.past.observed))
        rows = rows[non_dominated(losses[rows])]
        first = {self.past.configurations[row]: row for row in rows[::-1]}
        distinct = np.array(sorted(first.values()), dtype=int)
        chosen = _by_volume(losses[distinct], n)
        return tuple(self.past.configurations[distinct[index]] for index in chosen)


def source_models(past: Sequence[PastStudy], space: SearchSpace, *, seed: int) -> tuple[SourceModel, ...]:
    """The models of those past studies that say anything."""
    found: list[SourceModel] = []
    for one in past:
        try:
            found.append(SourceModel.of(one, space, seed=seed))
        except SurrogateError:
            continue
    return tuple(found)


def _by_volume(losses: Array, n: int) -> list[int]:
    """Up to `n` rows of a front `[t, m]`, greedily by hypervolume; those that add nothing come last, in order."""
    if not len(losses):
        return []
    low, high = losses.min(axis=0), losses.max(axis=0)
    scaled = (losses - low) / np.where(high > low, high - low, 1.0)
    reference = np.full(losses.shape[1], 1.0 + _MARGIN)
    chosen: list[int] = []
    left = list(range(len(losses)))
    while left and len(chosen) < n:
        volumes = [hypervolume(scaled[[*chosen, index]], reference) for index in left]
        chosen.append(left.pop(int(np.argmax(volumes))))
    return chosen
