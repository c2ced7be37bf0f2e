"""Which rows belong to which configuration.

Shapes: K slots, N rows of all slots.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import torch

from autopeft.errors import SpecError

DROPOUT_STEPS: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The rows of K configurations, slot after slot, and what each slot does to its own; a slot may be empty.

    All tensors lie on the device of the rows. Nothing is read back from it: the host knows the lengths.
    """

    lengths: tuple[int, ...]
    """Rows of each slot."""
    offsets: torch.Tensor
    """int32 [K + 1]: slot k owns the rows from offsets[k] to offsets[k + 1]."""
    scale: torch.Tensor
    """fp32 [K]: factor of the slot's update."""
    dropout: torch.Tensor
    """fp32 [K]: probability that an input of the update is dropped, in steps of 2^-16."""
    seed: torch.Tensor
    """int64 [K]: key of the slot's random bits; a pass that shall draw anew has another (`fold_seed`)."""
    drops: bool
    """Whether any slot drops anything: False in evaluation."""
    tokens: int = 1
    """Rows of a sequence. An element's mask depends on its sequence and its place there, not on how long sequences are
    padded: what a slot drops does not depend on the length of its neighbours' rows."""

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        *,
        scale: Sequence[float] | None = None,
        dropout: Sequence[float] | None = None,
        seed: Sequence[int] | None = None,
        tokens: int = 1,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Slots of the given lengths; scale one, no dropout and seed zero where not given.

        Raises:
            SpecError: A length is negative, a probability is not in [0, 1), or the sizes differ.
        """
        n = len(lengths)
        scale, dropout = scale or (1.0,) * n, dropout or (0.0,) * n
        seed = seed or (0,) * n
        for name, given in (("scale", scale), ("dropout", dropout), ("seed", seed)):
            if len(given) != n:
                raise SpecError(f"slots.{name}: {len(given)} values for {n} slots", hint="give one a slot")
        if wrong := [p for p in dropout if not 0.0 <= p <= 1.0 - 1.0 / DROPOUT_STEPS]:
            raise SpecError(f"slots.dropout: got {wrong[0]}", hint="use a probability from 0 to below 1")
        return cls(
            lengths=tuple(lengths),
            offsets=offsets_of(lengths, device=device),
            scale=_sent(scale, torch.float32, device),
            dropout=_sent(dropout, torch.float32, device),
            seed=_sent(seed, torch.int64, device),
            drops=any(dropout),
            tokens=tokens,
        )

    @property
    def n_rows(self) -> int:
        return sum(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def segments(self) -> Iterator[tuple[int, slice]]:
        """Each slot that has rows, with them."""
        end = 0
        for slot, length in enumerate(self.lengths):
            start, end = end, end + length
            if length:
                yield slot, slice(start, end)

    def evaluating(self) -> Self:
        """The same slots with dropout off."""
        return replace(self, drops=False)


def offsets_of(lengths: Sequence[int], *, device: torch.device | str) -> torch.Tensor:
    """int32 [K + 1]: where each slot's rows start, and the number of all rows.

    Raises:
        SpecError: A length is negative.
    """
    if wrong := [length for length in lengths if length < 0]:
        raise SpecError(f"slots.lengths: got {wrong[0]}", hint="a slot has zero rows or more")
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    return _sent(offsets, torch.int32, device)


def _sent(values: Sequence[float], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """`values` on the device, without waiting for what it is doing."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
