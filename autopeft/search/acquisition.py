"""Expected hypervolume improvement in closed form, some objectives uncertain, the others known; all minimised.

The metric's loss l of a candidate has a Gaussian posterior N(mu, s^2), its costs c are known. Improving to a loss l
adds the integral over t from l up to the reference of A(t; c): the part of the cost box [c, reference] that no front
point with loss <= t dominates. A changes only at the losses of the front, l_1 < ... < l_m < l_{m+1} = reference, so

    EHVI(mu, s, c) = sum over k of A_k(c) * (psi(l_{k+1}) - psi(l_k)),    psi(t) = E[(t - l)+], psi(l_0) = 0,

with A_k the area that the k best points leave free. Here the region that the front leaves free is cut once into
disjoint boxes, each an interval of the loss times a box of costs, and the sum runs over boxes: one formula for any
number of costs, without Monte Carlo. Of a box the improvement is a product over objectives, so where several are
uncertain and their posteriors independent its expectation is the product of theirs, exactly. Known objectives beside a
modelled one: Olofsson et al. 2018; several independent ones: Yang et al. 2019, "Efficient Computation of Expected
Hypervolume Improvement".
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from autopeft.objectives.pareto import Array, non_dominated

_SQRT_2_PI = float(np.sqrt(2 * np.pi))


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeRegion:
    """The part of loss x cost space that a front leaves free, as b disjoint boxes below the reference."""

    low: Array
    """`[b, 1 + k]` lower corners, the loss first; -inf where a box is open."""
    high: Array
    """`[b, 1 + k]` upper corners, finite."""

    @classmethod
    def of(cls, front: Array, reference: Array) -> "FreeRegion":
        """The free region of `front`.

        A sweep over the loss: a point takes its part out of every cost box it reaches, from its own loss on.

        Args:
            front: `[m, 1 + k]` losses, the uncertain one first; rows outside the reference or dominated do not count.
            reference: `[1 + k]`.
        """
        inside = front[(front < reference).all(axis=1)]
        points = inside[non_dominated(inside)]
        whole = (np.full(len(reference) - 1, -np.inf), reference[1:])
        active: list[tuple[float, Array, Array]] = [(-np.inf, *whole)]
        done: list[tuple[Array, Array]] = []
        for point in points[np.argsort(points[:, 0], kind="stable")]:
            kept: list[tuple[float, Array, Array]] = []
            for start, low, high in active:
                if (point[1:] >= high).any():
                    kept.append((start, low, high))
                    continue
                if point[0] > start:
                    done.append((np.append(start, low), np.append(point[0], high)))
                kept += [(float(point[0]), *rest) for rest in _without(low, high, point[1:])]
            active = kept
        done += [(np.append(start, low), np.append(reference[0], high)) for start, low, high in active]
        return cls(low=np.array([low for low, _ in done]), high=np.array([high for _, high in done]))

    def expected_improvement(self, mean: Array, deviation: Array, *, costs: Array) -> Array:
        """Expected hypervolume gain of each candidate, exactly.

        Args:
            mean: `[n, u]` posterior means of the first u objectives, or `[n]` of one; u = 0 allowed.
            deviation: Posterior standard deviations in the same shape, >= 0; at zero this is the plain improvement.
            costs: `[n, k]` the other objectives, known; k = 0 allowed (plain expected improvement).

        Returns:
            `[n]`, >= 0, in the product of the objectives' units. Cost: O(n b (u + k)).
        """
        return self.averaged_improvement(mean[None], deviation[None], costs=costs)

    def averaged_improvement(self, means: Array, deviations: Array, *, costs: Array) -> Array:
        """`expected_improvement` averaged over s posteriors: what a mixture of them expects.

        Args:
            means: `[s, n, u]`, or `[s, n]` for one uncertain objective.
            deviations: In the same shape.
            costs: `[n, k]`, the same for all.
        """
        n, uncertain = len(costs), self.low.shape[1] - costs.shape[1]
        shape = (len(means), n, uncertain)
        cheaper = np.ones((n, len(self.low)))
        for index, column in enumerate(costs.T, start=uncertain):
            cheaper *= np.maximum(self.high[:, index] - np.maximum(self.low[:, index], column[:, None]), 0.0)
        better = np.zeros((n, len(self.low)))
        for mean, deviation in zip(means.reshape(shape), deviations.reshape(shape), strict=True):
            better += self._reached(mean, deviation)
        return (cheaper * better).sum(axis=1) / len(means)

    def _reached(self, mean: Array, deviation: Array) -> Array:
        """`[n, b]` expected extent within every box of what `[n, u]` uncertain objectives improve."""
        gains = np.ones((len(mean), len(self.low)))
        for index in range(mean.shape[1]):
            of = (mean[:, index], deviation[:, index])
            reached = _partial_mean(self.high[:, index], *of) - _partial_mean(self.low[:, index], *of)
            gains *= np.maximum(reached, 0.0)
        return gains


def _without(low: Array, high: Array, point: Array) -> Iterator[tuple[Array, Array]]:
    """The box [low, high] less what `point` dominates of it, in at most one box a dimension."""
    corner = np.maximum(low, point)
    for index in range(len(point)):
        if corner[index] > low[index]:
            bottom, top = low.copy(), high.copy()
            bottom[:index] = corner[:index]
            top[index] = corner[index]
            yield bottom, top


def _partial_mean(threshold: Array, mean: Array, deviation: Array) -> Array:
    """`[n, b]` of E[(t - l)+] for l ~ N(mean, deviation^2); 0 at t = -inf."""
    finite = np.isfinite(threshold)
    gap = np.where(finite, threshold, 0.0)[None, :] - mean[:, None]
    spread = np.maximum(deviation, 1e-300)[:, None]
    z = np.clip(gap / spread, -1e10, 1e10)
    value = gap * ndtr(z) + spread * np.exp(-0.5 * z**2) / _SQRT_2_PI
    return np.where(finite[None, :], np.maximum(value, 0.0), 0.0)
