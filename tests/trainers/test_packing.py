"""Positions and small numbers in as few bytes as they need."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.trainers.packing import pack_numbers, pack_positions, unpack_numbers, unpack_positions

POSITIONS = st.sets(st.integers(0, 5000), min_size=1, max_size=300).map(
    lambda found: np.array(sorted(found), dtype=np.int64)
)


@given(POSITIONS)
def test_positions_come_back(positions: np.ndarray) -> None:
    packed = pack_positions(positions)
    assert unpack_positions(packed).tolist() == positions.tolist()
    assert packed.n_bytes == packed.quotients.size + packed.remainders.size


@given(POSITIONS)
def test_the_rice_parameter_is_the_best_there_is(positions: np.ndarray) -> None:
    gaps = [b - a - 1 for a, b in zip([-1, *positions.tolist()], positions.tolist(), strict=False)]

    def bits(rice: int) -> int:
        return sum((gap >> rice) + 1 + rice for gap in gaps)

    packed = pack_positions(positions)
    assert bits(packed.rice) == min(bits(rice) for rice in range(20))
    assert packed.n_bytes <= math.ceil(bits(packed.rice) / 8) + 1


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.5])
def test_random_positions_cost_little_more_than_their_entropy(share: float) -> None:
    n = 40_000
    positions = np.flatnonzero(np.random.default_rng(0).random(n) < share)
    entropy = -n * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert 8 * pack_positions(positions).n_bytes < 1.05 * entropy + 64


@given(st.integers(0, 12).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, max(0, 2**b - 1))))))
def test_numbers_come_back(case: tuple[int, list[int]]) -> None:
    bits, numbers = case
    packed = pack_numbers(np.array(numbers, dtype=np.int64), bits=bits)
    assert packed.size == math.ceil(bits * len(numbers) / 8)
    assert unpack_numbers(packed, bits=bits, count=len(numbers)).tolist() == numbers


def test_bytes_of_another_count_are_refused() -> None:
    packed = pack_positions(np.array([3, 9], dtype=np.int64))
    with pytest.raises(ValueError, match="2 positions where 3 were stored"):
        unpack_positions(type(packed)(**{**{n: getattr(packed, n) for n in packed.__slots__}, "count": 3}))
    with pytest.raises(ValueError, match="1 bytes hold fewer than 9 numbers of 1 bits"):
        unpack_numbers(np.zeros(1, dtype=np.uint8), bits=1, count=9)
