"""The LoRA pairs of several slots at one map, and the map, as one operation of the kernels.

Letters: N rows of all slots, T tokens of the longest, K slots, R largest rank, I and O input and output width.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from autopeft.kernels.dispatch import takes
from autopeft.kernels.low_rank import BRANCH, lora_linear
from autopeft.kernels.slots import Slots
from autopeft.trainers.adapters.lora import LoraPair, PairHook, is_frozen, rows_of
from autopeft.trainers.adapters.passes import tokens_of
from autopeft.trainers.packed.hooks import Hook
from autopeft.trainers.packed.layout import Layout
from autopeft.trainers.sites import LinearLike


def pairs_of(
    hooks: Sequence[Sequence[Hook]], linear: LinearLike, x: torch.Tensor, layout: Layout
) -> list[LoraPair | None] | None:
    """The pair of every slot at a map, None for a slot without one; None where each slot is to be left to itself.

    That is where anything else acts on the map's output, where fewer than half of the slots have a pair, where the map
    is trained or no kernel takes them, and where the rows of `x` are neither sequences nor their tokens.

    Args:
        hooks: Of each slot, what acts on the map's output.
        linear: The map.
        x: What it is called with, [N, T, I] or [N, I].
        layout: Whose rows they are.
    """
    if not is_frozen(linear) or len(x) != layout.n_rows or x.dim() not in (2, 3):
        return None
    pairs: list[LoraPair | None] = []
    for own in hooks:
        hook = own[0][0] if len(own) == 1 else None
        if own and not isinstance(hook, PairHook):
            return None
        pairs.append(hook.pair if isinstance(hook, PairHook) else None)
    known = [pair for pair in pairs if pair is not None]
    if 2 * len(known) < len(pairs) or len({pair.stream for pair in known}) != 1:
        return None
    fits = all(pair.fits_kernels(x) for pair in known) and takes(BRANCH, x, rank=max(len(pair.a) for pair in known))
    return pairs if fits else None


def summed(pairs: Sequence[LoraPair | None], linear: LinearLike, x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The frozen map of `x` with every slot's pair applied to its rows; to padding too, which nobody reads."""
    known = [pair for pair in pairs if pair is not None]
    if len(pairs) == 1:
        return known[0].beside(linear, x)
    rank = max(len(pair.a) for pair in known)
    none_a, none_b = torch.zeros_like(known[0].a[:1]).expand(rank, -1), torch.zeros_like(known[0].b[:, :1])
    a_KRI = torch.stack([none_a if pair is None else _padded_a(pair.a, rank) for pair in pairs])
    b_KOR = torch.stack([none_b.expand(-1, rank) if pair is None else _padded_b(pair.b, rank) for pair in pairs])
    (y_NO,) = lora_linear(
        x.flatten(0, -2),
        [rows_of(linear)],
        [linear.bias],
        a_KRI.unsqueeze(1),
        [b_KOR],
        _slots(pairs, x, layout),
        stream=known[0].stream,
    )
    return y_NO.view(*x.shape[:-1], -1)


def _padded_a(a: torch.Tensor, rank: int) -> torch.Tensor:
    return a if len(a) == rank else functional.pad(a, (0, 0, 0, rank - len(a)))


def _padded_b(b: torch.Tensor, rank: int) -> torch.Tensor:
    return b if b.shape[1] == rank else functional.pad(b, (0, rank - b.shape[1]))


def _slots(pairs: Sequence[LoraPair | None], x: torch.Tensor, layout: Layout) -> Slots:
    """Made once a pass for all maps with the same scales and dropout: its tensors travel to the device."""
    tokens = tokens_of(x)
    rows = [(0.0, 0.0, 0) if pair is None else (pair.scale, pair.drops, pair.passing.key) for pair in pairs]
    kind = tokens, *rows
    if kind not in layout.kept:
        scale, dropout, seed = zip(*rows, strict=True)
        lengths = [count * tokens for count in layout.counts]
        layout.kept[kind] = Slots.of(lengths, scale=scale, dropout=dropout, seed=seed, tokens=tokens, device=x.device)
    slots = layout.kept[kind]
    assert isinstance(slots, Slots)
    return slots
