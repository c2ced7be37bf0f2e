"""Which slots' rows go through the base in one pass.

Rows of unlike length in one pass are padded to the longest of all; more passes cost their launches. A pass of r rows
padded to T tokens is taken to cost r T + c cells, c being what a device could compute while a pass is launched.

Letters: B rows, T tokens of the longest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

PASS_CELLS: Final[Mapping[str, int]] = MappingProxyType({"cpu": 64, "cuda": 8192})
"""Cells that a device computes in the time that a pass takes beside them; an order of magnitude."""
MOST_CELLS: Final[Mapping[str, int]] = MappingProxyType({"cpu": 1 << 14, "cuda": 1 << 18})
"""Cells of a pass at which another slot brings nothing more: the device is busy, and memory is not."""


@dataclass(frozen=True, slots=True)
class Size:
    """What of a slot goes through the base in a pass."""

    shape: tuple[int, ...]
    """(B, T)."""
    skipped: float = 0.0
    """Share of the base, from below, that need not be run for it."""


def grouped(sizes: Sequence[Size], *, device: str, most_slots: int) -> list[list[int]]:
    """Indices of `sizes` in groups, one a pass: the cheapest split of the slots in the order of their lengths.

    Where that is cheaper, slots that skip the same layers have passes of their own: of a pass for all, the layers are
    run that any of them needs.

    Cost: O(n^2) for n slots.

    Args:
        sizes: Of each slot's batch.
        device: Its type.
        most_slots: Slots of a pass.
    """
    whole = _cheapest(sizes, range(len(sizes)), device=device, most_slots=most_slots)
    classes = sorted({size.skipped for size in sizes})
    if len(classes) < 2:
        return whole[1]
    apart = [
        _cheapest(
            sizes, [i for i, size in enumerate(sizes) if size.skipped == own], device=device, most_slots=most_slots
        )
        for own in classes
    ]
    if sum(cost for cost, _ in apart) < whole[0]:
        return [group for _, groups in apart for group in groups]
    return whole[1]


def _cheapest(
    sizes: Sequence[Size], indices: Iterable[int], *, device: str, most_slots: int
) -> tuple[float, list[list[int]]]:
    """Cost and groups of the slots at `indices`."""
    order = sorted(indices, key=lambda index: (sizes[index].shape[1], index))
    fixed, most = PASS_CELLS.get(device, 0), MOST_CELLS.get(device, 1 << 16)
    run = 1.0 - min((sizes[index].skipped for index in order), default=0.0)
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(order) + 1):
        choices: list[tuple[float, int]] = []
        rows = 0
        for start in range(end - 1, max(-1, end - 1 - most_slots), -1):
            rows += sizes[order[start]].shape[0]
            cells = rows * sizes[order[end - 1]].shape[1]
            if cells > most and start < end - 1:
                break
            choices.append((best[start][0] + cells * run + fixed, start))
        best.append(min(choices))
    groups: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.append(sorted(order[start:end]))
        end = start
    return best[-1][0], groups[::-1]
