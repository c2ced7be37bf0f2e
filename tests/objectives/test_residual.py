"""What measured peaks say of predicted ones."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.objectives.residual import MARGIN, Residual

RATIOS = st.lists(st.floats(0.5, 2.0), max_size=40)


def test_nothing_measured_is_trusted_with_a_margin() -> None:
    assert Residual().ratio == 1.0
    assert Residual().upper() == pytest.approx(1 + MARGIN)


def test_the_margin_shrinks_as_measurements_come() -> None:
    bounds = [Residual.of([(1.0, 1.0)] * n).upper(confidence=0.9) for n in range(10)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] == pytest.approx(1 + MARGIN)
    assert bounds[9] == pytest.approx(1.0), "nine ratios give nine chances in ten"


@given(RATIOS, st.randoms())
def test_the_order_of_trials_does_not_matter(ratios: list[float], chance: random.Random) -> None:
    pairs = [(100 * ratio, 100.0) for ratio in ratios]
    first = Residual.of(pairs)
    chance.shuffle(pairs)
    assert Residual.of(pairs) == first


def test_the_bound_holds_as_often_as_it_says() -> None:
    chance = random.Random(0)
    held = 0
    for _ in range(2000):
        rows = [(math.exp(chance.gauss(0.1, 0.2)), 1.0) for _ in range(31)]
        held += rows[-1][0] <= Residual.of(rows[:-1]).upper(confidence=0.9)
    assert held / 2000 == pytest.approx(28 / 31, abs=0.02)


def test_a_trial_that_ran_out_of_memory_is_a_ceiling() -> None:
    residual = Residual.of([(90.0, 100.0)] * 40, failed=[300.0, 200.0])
    assert residual.ratio == pytest.approx(0.9)
    assert residual.fits(199.0, 1000.0)
    assert not residual.fits(200.0, 1000.0)
    assert residual.fits(100.0, 91.0)
    assert not residual.fits(100.0, 89.0)
