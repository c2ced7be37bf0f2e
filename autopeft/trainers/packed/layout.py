"""Which rows of a pass belong to which slot, and taking tensors apart and together by it.

A slot sees its rows as it would alone: cut at the end of its own longest row, so that shapes, and with them the masks
that dropout draws, are the same whatever its neighbours are.

Letters: N rows of all slots, B of one slot, T tokens of the longest row, S of a slot's longest, F features.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Final, final

import torch
from torch.nn import functional
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Tree = object
"""A tensor, or containers with tensors in them."""
_PIECES: Final = 2
"""Dimensions of a tensor with a row of features for every sequence, or for every token."""


@final
class Layout:
    """The slots of one pass: how many rows each has, and how long they are.

    Args:
        counts: Rows of each slot, one or more; they lie slot after slot.
        lengths: Tokens of each slot's longest row.
    """

    def __init__(self, counts: Sequence[int], lengths: Sequence[int]) -> None:
        self.counts = tuple(counts)
        self.lengths = tuple(lengths)
        self.n_rows = sum(counts)
        self.width = max(lengths)
        self._ragged = min(lengths) < self.width
        self.kept: dict[Hashable, object] = {}
        """What others derive from the layout, and need again in the pass."""
        self._last: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    @property
    def alone(self) -> bool:
        """Whether one slot has all rows: then nothing is to be taken apart."""
        return len(self.counts) == 1

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Each slot's part of a tensor with a row, or a token, of all slots in its first dimension.

        What has one row for all (positions) is cut to each slot's length. Parts may be changed in place where nobody
        reads `tensor` afterwards.
        """
        if len(tensor) == 1:
            return self._cut([tensor] * len(self.counts))
        if len(tensor) == self.n_rows:
            return self._cut(list(torch.unsafe_split_with_sizes(tensor, self.counts)))
        assert len(tensor) == self.n_rows * self.width, f"{tuple(tensor.shape)} for {self.n_rows} rows"
        rows = torch.unsafe_split_with_sizes(tensor.unflatten(0, (self.n_rows, self.width)), self.counts)
        return [part.flatten(0, 1) for part in self._cut(list(rows))]

    def split_read(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """`split` of what several maps may read: they split it once, so that its gradient is put together once."""
        if self._last is None or self._last[0] is not tensor:
            self._last = tensor, self.split(tensor)
        return self._last[1]

    def forget(self) -> None:
        """Let go of what was read last."""
        self._last = None

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What `split` takes apart, from its parts; padding is zero."""
        if self._by_token(parts):
            parts = [part.unflatten(0, (count, -1)) for part, count in zip(parts, self.counts, strict=True)]
            return torch.cat(self._padded(parts)).flatten(0, 1)
        return torch.cat(self._padded(parts))

    def split_tree(self, tree: Tree, *, read: bool = False) -> list[Any]:
        """`split`, or `split_read`, of every tensor in `tree`; everything else is the same for all."""
        leaves, spec = tree_flatten(tree)
        split = self.split_read if read else self.split
        columns: list[Sequence[object]] = [
            split(leaf) if isinstance(leaf, torch.Tensor) and leaf.dim() else [leaf] * len(self.counts)
            for leaf in leaves
        ]
        return [tree_unflatten([column[slot] for column in columns], spec) for slot in range(len(self.counts))]

    def join_trees(self, trees: Sequence[Tree]) -> Any:
        """`join` of the tensors at each place; everything else is the first slot's."""
        flat: list[tuple[list[object], TreeSpec]] = [tree_flatten(tree) for tree in trees]
        joined = [
            self.join(column) if all(isinstance(leaf, torch.Tensor) for leaf in column) else column[0]  # type: ignore[arg-type]  # looked at one by one
            for column in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
        return tree_unflatten(joined, flat[0][1])

    def _cut(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Parts whose second dimension is that of tokens, each as long as its slot's rows."""
        if not self._ragged or not _has_tokens(parts[0]) or parts[0].shape[1] != self.width:
            return parts
        return [
            part if length == self.width else part.narrow(1, 0, length)
            for part, length in zip(parts, self.lengths, strict=True)
        ]

    def _padded(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not self._ragged or not _has_tokens(parts[0]):
            return list(parts)
        if any(part.shape[1] != length for part, length in zip(parts, self.lengths, strict=True)):
            return list(parts)
        return [functional.pad(part, (0, 0) * (part.dim() - 2) + (0, self.width - part.shape[1])) for part in parts]

    def _by_token(self, parts: Sequence[torch.Tensor]) -> bool:
        """Whether each part has a row a token."""
        if self.width == 1 or parts[0].dim() != _PIECES:
            return False
        sizes = zip(parts, self.counts, self.lengths, strict=True)
        return all(len(part) == count * length for part, count, length in sizes)


def _has_tokens(tensor: torch.Tensor) -> bool:
    """Whether the second dimension may be that of tokens: of a vector a row, `[N, F]`, it is not."""
    return tensor.dim() > _PIECES or (tensor.dim() == _PIECES and not tensor.is_floating_point())
