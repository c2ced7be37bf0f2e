"""The LoRA pairs of several slots at one map as two grouped products, one launch each where there is a kernel.

Letters: N rows of all slots, T tokens of the longest, K slots, R largest rank, I and O input and output width.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn import functional

from autopeft.kernels.low_rank import expand_add, shrink
from autopeft.kernels.slots import Slots
from autopeft.trainers.adapters.lora import LoraPair, PairHook
from autopeft.trainers.packed.hooks import Hook
from autopeft.trainers.packed.layout import Layout

DEVICES: Final = frozenset({"cuda"})
"""Where launches cost more than the padding of ranks: a CPU computes slot after slot either way."""
_LEAST: Final = 2


def pairs_of(hooks: Sequence[Sequence[Hook]], *, training: bool) -> list[LoraPair | None] | None:
    """The pair of every slot at a map, None for a slot without one; None where anything else acts there.

    A pair that drops inputs out draws as it draws alone, and is left to do so.

    Args:
        hooks: Of each slot, what acts on the map's output.
        training: Whether dropout is on.
    """
    pairs: list[LoraPair | None] = []
    for own in hooks:
        hook = own[0][0] if len(own) == 1 else None
        if own and not isinstance(hook, PairHook):
            return None
        pair = hook.pair if isinstance(hook, PairHook) else None
        if pair is not None and pair.dropout and training:
            return None
        pairs.append(pair)
    return pairs if sum(pair is not None for pair in pairs) >= max(_LEAST, len(pairs) / 2) else None


def updated(pairs: Sequence[LoraPair | None], x_NTI: torch.Tensor, y_NTO: torch.Tensor, layout: Layout) -> torch.Tensor:
    """`y_NTO`, changed in place, with every slot's pair applied to its rows; padding too, which nobody reads."""
    rank = max(len(pair.a) for pair in pairs if pair is not None)
    none_a, none_b = x_NTI.new_zeros(rank, x_NTI.shape[-1]), y_NTO.new_zeros(y_NTO.shape[-1], rank)
    factors = [(none_a, none_b) if pair is None else _padded(pair, rank, like=(x_NTI, y_NTO)) for pair in pairs]
    a_KRI, b_KOR = (torch.stack(column) for column in zip(*factors, strict=True))
    scales = tuple(0.0 if pair is None else pair.scale for pair in pairs)
    tokens = len(x_NTI.flatten(0, -2)) // layout.n_rows
    slots = _slots(layout, scales, tokens, device=x_NTI.device)
    (s_NR,) = shrink(x_NTI.flatten(0, -2), a_KRI.unsqueeze(1), slots, stream=0)
    return expand_add(y_NTO.flatten(0, -2), s_NR.to(y_NTO.dtype), b_KOR, slots).view(y_NTO.shape)


def _padded(pair: LoraPair, rank: int, *, like: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A [R, I] and B [O, R] in the dtypes of what they act on, zero beyond the pair's own rank."""
    missing = rank - len(pair.a)
    a, b = pair.a.to(like[0].dtype), pair.b.to(like[1].dtype)
    return functional.pad(a, (0, 0, 0, missing)), functional.pad(b, (0, missing))


def _slots(layout: Layout, scales: tuple[float, ...], tokens: int, *, device: torch.device) -> Slots:
    """Made once a pass for all maps with the same scales: its tensors travel to the device."""
    key = scales, tokens
    if key not in layout.kept:
        layout.kept[key] = Slots.of([count * tokens for count in layout.counts], scale=scales, device=device)
    slots = layout.kept[key]
    assert isinstance(slots, Slots)
    return slots
