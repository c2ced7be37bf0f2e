"""Numbers that are known at some points, and told at others where a polynomial through all known points is exact."""

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Point = tuple[int, ...]

_EXACT = 1e-3
"""What is told are whole numbers; a fit that is off by more is none."""


@final
class Surface:
    """A function from whole numbers to vectors of whole numbers, dear to compute.

    A polynomial of the first degree is believed once all points lie on it and they would have told one of the second
    degree apart; one of the second degree once another point lies on it besides those that determine it. Then a value
    is told where its point is in the box that the computed ones span. Pieces that meet in a kink are found out as soon
    as points on both sides are known; then every point is computed.
    """

    def __init__(self, compute: Callable[[Point], Vector]) -> None:
        self._compute = compute
        self._known: dict[Point, Vector] = {}
        self._fit: tuple[int, Vector] | None = None

    def __call__(self, point: Point) -> Vector:
        """The function at `point`."""
        if point in self._known:
            return self._known[point]
        if self._fit is not None and self._within(point):
            degree, coefficients = self._fit
            return np.rint(_terms([point], degree)[0] @ coefficients)
        found = self._compute(point)
        self._known[point] = found
        self._fit = self._fitted()
        return found

    @property
    def n_computed(self) -> int:
        return len(self._known)

    def _within(self, point: Point) -> bool:
        known = np.array(list(self._known))
        return bool((known.min(0) <= point).all() and (known.max(0) >= point).all())

    def _fitted(self) -> tuple[int, Vector] | None:
        """Degree and coefficients of the polynomial through all known points, if there is one to believe."""
        points = list(self._known)
        origin = self._known[points[0]]
        values = np.array([self._known[point] - origin for point in points])
        terms = _terms(points, 2)
        varied = 1 + sum(bool(column.min() < column.max()) for column in terms.T)
        if len(points) < varied or np.linalg.matrix_rank(_scaled(terms)[0]) < varied:
            return None
        for degree in (1, 2):
            if degree == 2 and len(points) == varied:
                return None
            scaled, scales = _scaled(_terms(points, degree))
            coefficients = np.linalg.lstsq(scaled, values, rcond=None)[0]
            if np.abs(scaled @ coefficients - values).max() < _EXACT:
                coefficients = np.asarray(coefficients / scales[:, None], dtype=np.float64)
                coefficients[0] += origin
                return degree, coefficients
        return None


def _scaled(terms: Vector) -> tuple[Vector, Vector]:
    """`terms` with every column's largest at 1, and what they were divided by."""
    scales = np.maximum(np.abs(terms).max(0), 1.0)
    return terms / scales, scales


def _terms(points: list[Point], degree: int) -> Vector:
    """One row a point: 1, each coordinate, and for the second degree every product of two."""
    rows = np.array(points, dtype=np.float64)
    columns = [np.ones(len(rows)), *rows.T]
    if degree == 2:
        columns += [rows[:, a] * rows[:, b] for a, b in combinations_with_replacement(range(rows.shape[1]), 2)]
    return np.stack(columns, axis=1)
