"""Intervals of scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.objectives.interval import bootstrap, wilson


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [(0.8, 10, 0.4902, 0.9433), (0.0, 20, 0.0, 0.1611), (1.0, 8, 0.6756, 1.0), (0.5, 1000, 0.4691, 0.5309)],
)
def test_wilsons_interval_has_the_published_values(share: float, n: int, low: float, high: float) -> None:
    found = wilson(share, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert (found.method, found.level, found.rows) == ("wilson", 0.95, n)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_stays_in_the_unit_interval(counts: tuple[int, int]) -> None:
    hits, n = counts
    found = wilson(hits / n, n)
    assert 0.0 <= found.low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= found.high <= 1.0
    assert found.low < found.high


def test_a_bootstrapped_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap(lambda rows: float(values[rows].mean()), len(values))
    error = values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert found.low < values.mean() < found.high


def test_equal_input_gives_equal_intervals_and_a_higher_level_a_wider_one() -> None:
    values = np.arange(30.0)

    def score(rows: np.ndarray) -> float:
        return float(np.median(values[rows]))

    assert bootstrap(score, 30) == bootstrap(score, 30)
    narrow, wide = bootstrap(score, 30, level=0.5), bootstrap(score, 30, level=0.99)
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    assert wide.to_json() == {"low": wide.low, "high": wide.high, "method": "bootstrap", "level": 0.99, "rows": 30}
