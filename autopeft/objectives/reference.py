"""The corner that bounds the hypervolume, chosen from what a study has measured."""

from collections.abc import Sequence

import numpy as np

from autopeft.objectives.objective import Direction, Knowledge, Objective
from autopeft.objectives.pareto import Array

MARGIN = 0.1
"""Share of the range by which the reference lies beyond the worst value."""

OUTLIER = 10.0
"""A minimised learned value above this many times the median counts as an accident, not as part of the range."""


def outlier_limit(losses: Array, objective: Objective) -> float:
    """The largest loss that still says something about the range of an objective: ten times the median.

    A nearly diverged run reports a finite perplexity of 1e9, a stalled machine an hour where others take a minute;
    without a limit one of them would set the scale of everything. Only learned objectives that are minimised have
    one: scores such as accuracy are bounded, and costs that are known are no accidents. Infinite for the others, for
    no values, and where the median is not positive.

    Args:
        losses: `[n]`, finite.
        objective: What they are losses of.
    """
    limited = objective.knowledge is Knowledge.LEARNED and objective.direction is Direction.MINIMIZE
    middle = float(np.median(losses)) if limited and len(losses) else 0.0
    return OUTLIER * middle if middle > 0 else np.inf


def reference_point(losses: Array, objectives: Sequence[Objective]) -> Array:
    """`[m]` reference losses for trials that completed with `losses`.

    The worst value of any completed trial plus a tenth of the range (worst less best), per objective. So it fits any
    task and unit; an end of the front still adds volume; and it moves only when a trial is worse than all before it,
    which is rare once the smallest and the largest configuration have been tried. The worst trials of a search do no
    better than chance, so the metric's reference lies just beyond chance level, and configurations that learn nothing
    add next to nothing. Accidents are left out (`outlier_limit`). Where all values are equal, as
    with a single trial, the margin is a tenth of the value's magnitude, or 0.1 when that is zero.

    The curve of hypervolume over trials uses one reference, that of all its trials (`front.hypervolume_curve`):
    volumes with different references cannot be compared.

    Args:
        losses: `[n, m]`, n >= 1, finite, of every completed trial, dominated ones too.
        objectives: m objectives, in the order of the columns.
    """
    corner = np.empty(losses.shape[1])
    for index, (column, objective) in enumerate(zip(losses.T, objectives, strict=True)):
        best, worst = float(column.min()), min(float(column.max()), outlier_limit(column, objective))
        margin = MARGIN * ((worst - best) or abs(worst) or 1.0)
        corner[index] = worst + margin
    return corner
