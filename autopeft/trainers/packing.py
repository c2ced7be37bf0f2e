"""Bits in bytes: sets of positions by Rice's code, and small whole numbers side by side; numpy only."""

from dataclasses import dataclass

import numpy as np

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
Positions = np.ndarray[tuple[int], np.dtype[np.int64]]

MAX_RICE = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPositions:
    """Ascending positions as the gaps between them: each gap's lowest `rice` bits, and the rest counted in ones.

    The Golomb code with a power of two: for n random positions of m within a few per cent of m H(n / m) bits.
    """

    quotients: Bytes
    remainders: Bytes
    count: int
    rice: int

    @property
    def n_bytes(self) -> int:
        return self.quotients.nbytes + self.remainders.nbytes


def pack_positions(positions: Positions) -> PackedPositions:
    """Strictly ascending `positions` from 0 upwards, with the Rice parameter that needs the fewest bits."""
    gaps = np.diff(positions, prepend=-1) - 1
    costs = [int((gaps >> rice).sum()) + len(gaps) * (1 + rice) for rice in range(MAX_RICE)]
    rice = int(np.argmin(costs))
    # A quotient q is q zeros and a one; the ones then stand at the running sum of (q + 1), less one.
    ends = np.cumsum((gaps >> rice) + 1) - 1
    ones = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
    ones[ends] = 1
    return PackedPositions(
        quotients=np.packbits(ones),
        remainders=pack_numbers(gaps & ((1 << rice) - 1), bits=rice),
        count=len(positions),
        rice=rice,
    )


def unpack_positions(packed: PackedPositions) -> Positions:
    """What `pack_positions` was given.

    Raises:
        ValueError: The bytes hold another number of positions.
    """
    ends = np.flatnonzero(np.unpackbits(packed.quotients))
    if len(ends) != packed.count:
        raise ValueError(f"{len(ends)} positions where {packed.count} were stored")
    quotients = np.diff(ends, prepend=-1) - 1
    remainders = unpack_numbers(packed.remainders, bits=packed.rice, count=packed.count)
    return np.cumsum((quotients << packed.rice) + remainders + 1) - 1


def pack_numbers(numbers: np.ndarray, *, bits: int) -> Bytes:
    """Whole numbers in [0, 2^bits) one after the other, the highest bit of each first."""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.int64)
    digits = (numbers.astype(np.int64)[:, None] >> shifts) & 1
    return np.packbits(digits.astype(np.uint8).reshape(-1))


def unpack_numbers(packed: Bytes, *, bits: int, count: int) -> Positions:
    """The first `count` numbers that `pack_numbers` packed.

    Raises:
        ValueError: There are fewer.
    """
    if bits == 0:
        return np.zeros(count, dtype=np.int64)
    if packed.size * 8 < bits * count:
        raise ValueError(f"{packed.size} bytes hold fewer than {count} numbers of {bits} bits")
    digits = np.unpackbits(packed, count=bits * count).reshape(count, bits).astype(np.int64)
    return digits @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
