"""The volume of objective space that a set of points dominates; exact for any number of objectives."""

from bisect import bisect_left, bisect_right

import numpy as np

from autopeft.errors import InputError
from autopeft.objectives.pareto import Array, non_dominated


def hypervolume(losses: Array, reference: Array) -> float:
    """Volume dominated by `losses` and bounded by `reference`, every objective minimised.

    Exact. Points not below `reference` in every objective add nothing, nor do points with NaN; duplicates count once.

    Args:
        losses: `[n, m]`, one row a trial, in each objective's own unit.
        reference: `[m]`, the corner that bounds the volume, same units.

    Returns:
        The volume, in the product of the units; 0.0 for no rows.

    Raises:
        InputError: The two differ in the number of objectives, or there are none.

    Source: three objectives, the sweep of Fonseca, Paquete and Lopez-Ibanez 2006; more, While, Bradstreet and Barone
    2012, "A Fast Way of Calculating Exact Hypervolumes" (WFG). Cost: O(n log n) for m <= 2, O(n^2) at worst for 3
    (list insertions; O(n log n) comparisons), exponential in m above.
    """
    if losses.ndim != 2 or reference.shape != (losses.shape[1],) or not len(reference):
        raise InputError(
            f"hypervolume: losses of shape {losses.shape} and a reference of shape {reference.shape}",
            hint="give losses [n, m] and a reference [m] with the same m >= 1",
        )
    inside = losses[(losses < reference).all(axis=1)]
    front = inside[non_dominated(inside)]
    return _volume(front, reference) if len(front) else 0.0


def _volume(front: Array, reference: Array) -> float:
    """`hypervolume` of rows that are inside the box and do not dominate each other."""
    m = len(reference)
    if m == 1:
        return float(reference[0] - front[:, 0].min())
    if m == 2:
        return _area(front, reference)
    if m == 3:
        return _sweep(front, reference)
    return _wfg(front, reference)


def _area(front: Array, reference: Array) -> float:
    ordered = front[np.argsort(front[:, 0], kind="stable")]
    tops = np.concatenate(([reference[1]], ordered[:-1, 1]))
    return float(((reference[0] - ordered[:, 0]) * (tops - ordered[:, 1])).sum())


def _sweep(front: Array, reference: Array) -> float:
    """Three objectives: slide a plane up the third axis and keep the area that the points below it dominate.

    `xs` ascending and `ys` descending are the corners of that area's staircase, so a point's own part of the area is
    the steps between the first corner right of it and the first corner below it; those corners then vanish.
    """
    right, top, ceiling = (float(value) for value in reference)
    xs: list[float] = []
    ys: list[float] = []
    area = volume = 0.0
    ordered = front[np.argsort(front[:, 2], kind="stable")].tolist()
    for index, (x, y, z) in enumerate(ordered):
        before = bisect_right(xs, x)
        if not before or ys[before - 1] > y:
            area += _insert(xs, ys, x=x, y=y, right=right, top=top)
        following = ordered[index + 1][2] if index + 1 < len(ordered) else ceiling
        volume += area * (following - z)
    return volume


def _insert(xs: list[float], ys: list[float], *, x: float, y: float, right: float, top: float) -> float:
    """Put a corner into the staircase, drop the corners it dominates, and return the area it adds."""
    start = stop = bisect_left(xs, x)
    left, height, area = x, ys[start - 1] if start else top, 0.0
    while stop < len(xs) and ys[stop] >= y:
        area += (xs[stop] - left) * (height - y)
        left, height = xs[stop], ys[stop]
        stop += 1
    area += ((xs[stop] if stop < len(xs) else right) - left) * (height - y)
    xs[start:stop], ys[start:stop] = [x], [y]
    return area


def _wfg(front: Array, reference: Array) -> float:
    """Four objectives and more: each point's box, less what the points after it already cover of that box.

    Worst points of the last objective first keeps the limited sets small, since most of their rows then coincide.
    """
    ordered = front[np.argsort(-front[:, -1], kind="stable")]
    volume = 0.0
    for index, point in enumerate(ordered):
        limited = np.maximum(ordered[index + 1 :], point)
        covered = _volume(limited[non_dominated(limited)], reference) if len(limited) else 0.0
        volume += float(np.prod(reference - point)) - covered
    return volume


def contributions(losses: Array, reference: Array) -> Array:
    """`[n]` hypervolume that would be lost without each row; zero for dominated rows and for either of two equal ones.

    Args:
        losses: `[n, m]`.
        reference: `[m]`.
    """
    total = hypervolume(losses, reference)
    return np.array([total - hypervolume(np.delete(losses, row, axis=0), reference) for row in range(len(losses))])
