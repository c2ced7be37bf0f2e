"""Random bits that depend on nothing but their place: Philox 4x32 with seven rounds.

Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3": seven rounds are the fewest that pass BigCrush. A
kernel draws the same bits wherever it meets the same element, so no mask is stored for the backward pass and a slot's
mask does not depend on its neighbours.

One call of Philox yields eight halves of 16 bits, those of eight neighbouring columns: with the usual 32 bits an
element the arithmetic, not the memory, would bound the kernels.

Shapes: M rows, C columns.
"""

from typing import Final

import torch

ROUNDS: Final = 7
LANES: Final = 8
_MASK: Final = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_SEED_STREAM: Final = 0x5EED


def philox(
    seed: torch.Tensor, c0: torch.Tensor, c1: torch.Tensor, c2: torch.Tensor, c3: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four words of 32 bits, as int64, for a counter of four words and a key `seed` of 64 bits; all broadcast."""
    low, high = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(ROUNDS):
        # The product wraps beyond 64 bits, signed or not, so its two words are right.
        from_c2, from_c0 = c2 * _ROUND_B, c0 * _ROUND_A
        c0 = ((from_c2 >> 32) & _MASK) ^ c1 ^ low
        c2 = ((from_c0 >> 32) & _MASK) ^ c3 ^ high
        c1, c3 = from_c2 & _MASK, from_c0 & _MASK
        low, high = (low + _KEY_A) & _MASK, (high + _KEY_B) & _MASK
    return c0, c1, c2, c3


def keep_mask(
    seed: torch.Tensor, p: torch.Tensor, *, rows: int, columns: int, stream: int, tokens: int = 1
) -> torch.Tensor:
    """Which elements of a slot's rows survive dropout, bool [M, C].

    Args:
        seed: The slot's key, int64 scalar.
        p: Its probability, fp32 scalar.
        rows: Rows of the slot; the mask of a row does not depend on how many there are.
        columns: Width of the rows.
        stream: Tells apart the maps and layers that draw with one key.
        tokens: Rows of a sequence, fewer than 2^16; a row's place is its sequence and its place there, 16 bits each.
    """
    device = seed.device
    row = torch.arange(rows, device=device).unsqueeze(-1)
    place = (row // tokens ^ (row % tokens) << 16) & _MASK
    group = torch.arange(-(-columns // LANES), device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words = torch.stack(philox(seed, place, group, zero + stream, zero), dim=-1)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1)
    return halves.reshape(rows, len(group) * LANES)[:, :columns] >= threshold(p)


def threshold(p: torch.Tensor) -> torch.Tensor:
    """The number of the 2^16 values of a half that drop an element, int64."""
    return torch.floor(p * 65536.0 + 0.5).to(torch.int64)


def keep_scale(p: torch.Tensor) -> torch.Tensor:
    """One over the probability, as rounded to 2^-16, that an element survives; fp32."""
    return 65536.0 / (65536.0 - threshold(p).to(torch.float32))


def fold_seed(seed: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """A key for each slot's step, int64 [K]: as good as drawn anew for every pair of seed and step, and repeatable."""
    zero = torch.zeros_like(seed)
    low, high, _, _ = philox(seed, step.to(torch.int64) & _MASK, zero, zero, zero + _SEED_STREAM)
    return (high << 32) | low
