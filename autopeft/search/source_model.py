"""What the trials of a past study say of any configuration, and which of them a new study should try first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from autopeft.objectives.pareto import Array
from autopeft.search.past_study import PastStudy
from autopeft.search.surrogate import Averaged, SurrogateError, fit
from autopeft.spaces.space import SearchSpace

MIN_ROWS = 3
"""Trials below which a past study says nothing."""


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


def source_models(past: Sequence[PastStudy], space: SearchSpace, *, seed: int) -> tuple[SourceModel, ...]:
    """The models of those past studies that say anything."""
    found: list[SourceModel] = []
    for one in past:
        try:
            found.append(SourceModel.of(one, space, seed=seed))
        except SurrogateError:
            continue
    return tuple(found)
