"""Rows of configurations side by side."""

import pytest
import torch

from autopeft.errors import SpecError
from autopeft.kernels.slots import Slots


def test_slots_own_their_rows_in_turn_and_may_be_empty() -> None:
    slots = Slots.of([2, 0, 3])
    assert slots.offsets.tolist() == [0, 2, 2, 5]
    assert list(slots.segments()) == [(0, slice(0, 2)), (2, slice(2, 5))]
    assert (slots.n_rows, len(slots), slots.drops) == (5, 3, False)
    assert slots.scale.tolist() == [1.0, 1.0, 1.0]


def test_what_is_no_slot_is_refused() -> None:
    with pytest.raises(SpecError, match=r"slots.lengths: got -1"):
        Slots.of([2, -1])
    with pytest.raises(SpecError, match=r"slots.dropout: got 1.0"):
        Slots.of([2], dropout=[1.0])
    with pytest.raises(SpecError, match=r"slots.scale: 1 values for 2 slots"):
        Slots.of([2, 1], scale=[1.0])


def test_slots_lie_where_their_rows_do() -> None:
    assert Slots.of([1], device="meta").seed.device == torch.device("meta")
