"""Dominance, ranks, crowding and the knee of a set of loss vectors; every objective minimised."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TIE = 1e-9
"""Normalised distances closer than this are a tie; floating-point noise must not choose a trial."""


def non_dominated(losses: Array) -> NDArray[np.bool_]:
    """True for each row that no other row dominates; of equal rows only the first is True.

    A row dominates another when it is nowhere larger and somewhere smaller. NaN rows are never on the front, and
    dominate nothing.

    Args:
        losses: `[n, m]`, one row a trial.

    Returns:
        `[n]` mask. Cost: O(n f m) for a front of f rows.
    """
    mask = np.zeros(len(losses), dtype=bool)
    valid = np.flatnonzero(~np.isnan(losses).any(axis=1))
    order = valid[np.lexsort((valid, *losses[valid].T[::-1]))]
    front = np.empty((0, losses.shape[1]))
    for index in order:
        if not np.all(front <= losses[index], axis=1).any():
            mask[index] = True
            front = losses[mask]
    return mask


def non_dominated_ranks(losses: Array) -> NDArray[np.int64]:
    """The front each row belongs to: 0 for non-dominated rows, 1 for those that only rank 0 dominates, and so on.

    Equal rows share a rank. Rows with NaN share the rank after the last.

    Args:
        losses: `[n, m]`.

    Source: Deb et al. 2002, NSGA-II, section III.A. Cost: O(n^2 m).
    """
    ranks = np.full(len(losses), -1, dtype=np.int64)
    left = ~np.isnan(losses).any(axis=1)
    rank = 0
    while left.any():
        rows = losses[left]
        front = rows[non_dominated(rows)]
        members = left & (losses[:, None, :] == front[None, :, :]).all(axis=2).any(axis=1)
        ranks[members] = rank
        left &= ~members
        rank += 1
    ranks[ranks < 0] = rank
    return ranks


def crowding_distance(losses: Array) -> Array:
    """How far apart each row's neighbours on the same front lie, summed over objectives scaled to [0, 1].

    Infinite for the rows at the ends of any objective that varies, so that a front's extremes are kept first; an
    objective with one value adds nothing, and when none varies every row is infinite.

    Args:
        losses: `[n, m]`, finite, of one front.

    Source: Deb et al. 2002, NSGA-II, section III.B. Cost: O(m n log n).
    """
    distance = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        spread = ordered[-1] - ordered[0] if len(ordered) else 0.0
        if spread > 0:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / spread
            distance[order[[0, -1]]] = np.inf
    return distance if np.isinf(distance).any() else np.full(len(losses), np.inf)


def knee(losses: Array, *, weights: Array | None = None) -> int:
    """Index of the row furthest below the plane that joins the ends of the front.

    Each objective is scaled to [0, 1] between the best (ideal) and the worst (nadir) value on the front; the plane is
    the one through the ends of the scaled box, where the scaled losses sum to one, so the row with the smallest sum
    lies furthest below it; `weights` tilt the plane. An objective with one value does not count. Ties, which two rows
    on two objectives always are, go to the row that is better in the first objective, then the second, and so on,
    then to the first row.

    Args:
        losses: `[n, m]`, finite, n >= 1, of one front. Take the logarithm of costs first where a ratio is what
            matters (`Front.knee` does).
        weights: `[m]`, positive; None weighs all objectives alike.

    Source: Das 1999, "On characterizing the knee of the Pareto curve".
    """
    ideal, nadir = losses.min(axis=0), losses.max(axis=0)
    spread = nadir - ideal
    scaled = np.where(spread > 0, (losses - ideal) / np.where(spread > 0, spread, 1.0), 0.0)
    sums = scaled.sum(axis=1) if weights is None else scaled @ weights
    tied = np.flatnonzero(sums <= sums.min() + TIE)
    return min((tuple(losses[index]), int(index)) for index in tied)[1]
