"""What adapters that kernels compute know of the pass they are in: the key of its dropout, and its rows as slots.

A pass has one key for all adapters of a configuration; what each drops follows from it and from where the adapter is.
So a layer that is run a second time, under checkpointing, drops the same, and so does a trial beside others.
"""

from typing import Final, final

import torch
from torch import nn

from autopeft.kernels.slots import Slots

_PLACES: Final = 1 << 12
"""More than a model has layers, or a layer has maps."""


def stream_of(layer: int, place: int, *, kind: int = 0) -> int:
    """What tells apart the masks of one pass: a number for the map at a `place` of a layer.

    Args:
        layer: Of the model.
        place: Of the map among those of the layer.
        kind: Of the adapter, where several kinds may act on one map.
    """
    return (kind * _PLACES + layer) * _PLACES + place


@final
class Pass:
    """The pass that a configuration's adapters are in; `begin` it before every pass that trains."""

    def __init__(self) -> None:
        self.key = 0
        self._slots: dict[tuple[int, int, float, float], Slots] = {}

    def begin(self, key: int) -> None:
        """A pass begins that drops what follows from `key`."""
        self.key = key
        self._slots.clear()

    def slots(self, x: torch.Tensor, *, scale: float, dropout: float) -> Slots:
        """The rows of `x` [..., I] as those of one slot, on its device; made once a pass."""
        n_rows, tokens = x.shape[:-1].numel(), tokens_of(x)
        kind = n_rows, tokens, scale, dropout
        if kind not in self._slots:
            self._slots[kind] = Slots.of(
                [n_rows], scale=[scale], dropout=[dropout], seed=[self.key], tokens=tokens, device=x.device
            )
        return self._slots[kind]


class OfPass(nn.Module):
    """A module of an adapter that is told of the pass it is in."""

    def __init__(self, *, stream: int = 0) -> None:
        super().__init__()
        self.passing = Pass()
        """That of the whole configuration once it is part of one."""
        self.stream = stream
        """See `stream_of`."""


def tokens_of(x: torch.Tensor) -> int:
    """Rows of a sequence in `x`, [B, T, I] or rows that are sequences of one each."""
    return x.shape[1] if x.dim() == 3 else 1
