"""A function is told between computed points only where a polynomial goes through all of them."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.trainers.interpolation import Point, Surface, Vector

COEFFICIENTS = st.lists(st.integers(-1000, 1000), min_size=6, max_size=6)


@given(COEFFICIENTS, st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), min_size=1, max_size=60))
def test_a_polynomial_is_told_exactly(coefficients: list[int], asked: list[Point]) -> None:
    a, b, c, d, e, f = coefficients

    def compute(point: Point) -> Vector:
        x, y = point
        return np.array([a + b * x + c * y, d * x * x + e * x * y + f], dtype=np.float64)

    surface = Surface(compute)
    for point in asked:
        assert surface(point).tolist() == compute(point).tolist()


def test_few_points_of_a_straight_function_are_computed() -> None:
    surface = Surface(lambda point: np.array([3.0 + 5 * point[0]]))
    for rank in (1, 64, 8, *range(1, 65)):
        assert surface((rank,)) == [3 + 5 * rank]
    assert surface.n_computed == 3


def test_a_kink_between_known_points_is_not_passed_over() -> None:
    surface = Surface(lambda point: np.array([max(10.0, point[0])]))
    for x in (1, 2, 3, 30, 20, 15, 9, 12):
        assert surface((x,)) == [max(10, x)]


@pytest.mark.parametrize("size", [2, 3])
def test_points_that_say_too_little_are_not_extended(size: int) -> None:
    surface = Surface(lambda point: np.array([float(np.prod(point))]))
    for point in product((1, 2, 4), repeat=size):
        assert surface(point) == [np.prod(point)]
