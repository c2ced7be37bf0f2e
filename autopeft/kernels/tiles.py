"""What the kernels of the low-rank branch share: whose rows a program has, and which elements dropout keeps.

Row and column counts are 32 bits, addresses 64; products accumulate in fp32.
"""

from collections.abc import Sequence
from typing import Final

from autopeft.kernels.language import INTERPRETED, constexpr, tl, triton

PROGRAMS: Final = 256
"""Programs that fill a card: about two for each of an H100's 132 multiprocessors."""
MANY_BYTES: Final = 192
"""Of one element of every rank of all targets: from there on blocks are smaller and programs have more warps, or else
registers spill and shared memory is more than the 99 KiB of a card of 8.6 or 8.9 (`benchmarks/kernels_aot.py`)."""


@triton.jit
def slot_of_tile(tile, offsets, n_slots, BLOCK_M: constexpr, SLOTS: constexpr):
    """Slot, first row, end of the slot's rows and start of them, for the tile-th block of rows, all of one slot."""
    k = tl.arange(0, SLOTS)
    start = tl.load(offsets + k, mask=k < n_slots, other=0)
    end = tl.load(offsets + k + 1, mask=k < n_slots, other=0)
    tiles = (end - start + BLOCK_M - 1) // BLOCK_M
    after = tl.cumsum(tiles, 0)
    slot = tl.sum((after <= tile).to(tl.int32), 0)
    mine = k == slot
    first = tl.sum(tl.where(mine, start, 0), 0)
    row = first + (tile - tl.sum(tl.where(mine, after - tiles, 0), 0)) * BLOCK_M
    return slot, row, tl.sum(tl.where(mine, end, 0), 0), first


@triton.jit
def rows_of_split(slot, split, n_splits, offsets, BLOCK_M: constexpr):
    """First row and end of the split-th part of a slot's rows, and the slot's first row; parts are whole blocks."""
    first, end = tl.load(offsets + slot), tl.load(offsets + slot + 1)
    blocks = (end - first + BLOCK_M - 1) // BLOCK_M
    rows = (blocks + n_splits - 1) // n_splits * BLOCK_M
    low = first + split * rows
    return low, tl.minimum(low + rows, end), first


@triton.jit
def place_of(rows, tokens):
    """Places of rows that count from the slot's first: a sequence of `tokens` rows and where in it, 16 bits each."""
    return rows // tokens ^ (rows % tokens) << 16  # one word of Philox: two would cost registers


@triton.jit
def kept(seed, threshold, places, column, stream, BLOCK_M: constexpr, BLOCK_C: constexpr):
    """Which of the elements [BLOCK_M, BLOCK_C] from `column` on survive, by the places of their rows."""
    group = column // 8 + tl.arange(0, BLOCK_C // 8)
    zero = tl.zeros([BLOCK_M, BLOCK_C // 8], tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, zero + places[:, None], zero + group[None, :], zero + stream, zero, 7)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return tl.interleave(words & 0xFFFF, words >> 16) >= threshold


@triton.jit
def drop_threshold(p):
    """How many of the 2^16 values of a half drop an element."""
    return tl.floor(p * 65536.0 + 0.5).to(tl.uint32)


@triton.jit
def scale_of_kept(threshold, DROPS: constexpr):
    """What the products of surviving elements still need."""
    factor = 1.0
    if DROPS:
        factor = 65536.0 / (65536.0 - threshold.to(tl.float32))
    return factor


@triton.jit
def matmul(left, right, accumulated):
    """The product plus what is accumulated, fp32; the interpreter multiplies the bits of bf16, so it is given fp32."""
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, accumulated, input_precision="ieee")


@triton.jit
def empty():
    """No blocks yet; one a target is `appended`, as many as there are, and all of them stay in registers."""
    return ()


@triton.jit
def appended(blocks, block):
    """The blocks and one more."""
    return blocks + (block,)


@triton.jit
def narrow(value, dtype: constexpr):
    """`value` in `dtype`, rounded to nearest even; the interpreter cuts bits off, so it is given what rounds so."""
    if INTERPRETED and (value.dtype == tl.float32) and (dtype == tl.bfloat16):
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        value = bits.to(tl.float32, bitcast=True)
    return value.to(dtype)


def ceil_div(size: int, block: int) -> int:
    """Blocks that `size` fills."""
    return -(-size // block)


def power_of_two(size: int, *, least: int = 16) -> int:
    """The smallest power of two that is at least `size` and `least`."""
    return max(least, 1 << (size - 1).bit_length())


def n_tiles(lengths: Sequence[int], block: int) -> int:
    """Blocks of rows that slots of these lengths fill."""
    return sum(ceil_div(length, block) for length in lengths)


def block_of_rows(lengths: Sequence[int], *, most: int) -> int:
    """Rows a program takes: `most`, halved as long as that leaves the card empty; at least 16."""
    block = most
    while block > 16 and n_tiles(lengths, block) < PROGRAMS:
        block //= 2
    return block


def n_splits(lengths: Sequence[int], columns: int, block: int) -> int:
    """Into how many parts a slot's rows are cut, so that `columns` programs a part fill the card; one where they do."""
    most = ceil_div(max(lengths, default=1), 4 * block)
    return max(1, min(PROGRAMS // max(1, columns * len(lengths)), most))
