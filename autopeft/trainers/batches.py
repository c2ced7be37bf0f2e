"""Length-bucketed batches: rows of like length together, padded to the longest of their own batch.

Letters: B rows of a batch, T tokens of its longest row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autopeft.trainers.pixels import ImageBatch, PixelSplit
from autopeft.trainers.tokens import TokenizedSplit

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

WINDOW = 32
"""Batches in a window. Padding in batches of 32, RTE cut at 128 tokens / SST-2: 48 / 51 % unsorted, 15 / 23 % with a
window of 4, 5 / 8 % with 16, 3 / 5 % with 32, 2 / 3 % with 64; a larger window leaves less to chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows padded on the right; every array is `int64`.

    Where each row is several alternatives, B counts them all, those of one row one after the other. Where a row is a
    source and a target, the arrays hold the sources.
    """

    ids_BT: IntArray
    mask_BT: IntArray
    """1 for a token, 0 for padding."""
    types_BT: IntArray | None
    """Segment of each token, for models that have segments."""
    targets: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    """`[rows]` labels (int64 classes or float32 numbers), or `[B, T]` targets at tokens (the next token, the word's
    tag) or `[B, target tokens]`, with -100 where there is none."""
    tokens: int
    """Tokens that are no padding."""

    @property
    def items(self) -> IntArray:
        """How many scored items each row has: one where targets are a number a row, else its targets."""
        if self.targets.ndim == 1:
            return np.ones(len(self.targets), dtype=np.int64)
        return np.asarray((self.targets != -100).sum(axis=1))


AnyBatch = Batch | ImageBatch
EncodedSplit = TokenizedSplit | PixelSplit
"""A split as the model reads it."""


def training_batches(lengths: IntArray, batch_size: int, *, seed: int, epoch: int) -> list[IntArray]:
    """Row indices of each batch of one epoch: every row once, `ceil(n / batch_size)` batches.

    Rows are shuffled, cut into windows, and sorted inside each window from long to short, so that a batch has rows of
    like length; then the batches are shuffled. All batches are full but one, which has the shortest rows of its window:
    the largest batch, and with it peak memory, is then the same in every epoch and for every seed.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch.
        seed: Of the trial.
        epoch: From 0; each has an order of its own.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches: list[IntArray] = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(-lengths[window], kind="stable")]
        batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def n_scored(batch: AnyBatch) -> int:
    """Items that the loss of `batch` is the mean of."""
    return int((batch.targets != -100).sum()) if batch.targets.dtype == np.int64 else len(batch.targets)


def in_parts(rows: IntArray, n_parts: int) -> list[IntArray]:
    """`rows` in at most `n_parts` parts of equal size, the last one perhaps smaller; their order is kept."""
    size = -(-len(rows) // n_parts)
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def evaluation_batches(lengths: IntArray, batch_size: int) -> list[IntArray]:
    """Row indices of each batch, longest rows first: what does not fit into memory fails at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def largest_batch(lengths: IntArray, batches: Sequence[IntArray]) -> int:
    """Index of the first batch with the most cells (rows times longest row)."""
    return int(np.argmax([len(rows) * int(lengths[rows].max()) for rows in batches]))


def padding_share(lengths: IntArray, batches: Sequence[IntArray]) -> float:
    """Share of the batches' cells that are padding, in [0, 1)."""
    cells = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1.0 - float(lengths.sum()) / cells


def collate(split: TokenizedSplit, rows: IntArray, *, pad_id: int) -> Batch:
    """The rows at `rows`, padded on the right to the longest of them."""
    if split.parts is not None:
        return _collate_parts(split, rows, split.parts[rows], pad_id=pad_id)
    lengths_B = split.lengths[rows]
    columns_T = np.arange(int(lengths_B.max()))
    real_BT = columns_T < lengths_B[:, None]
    cells = split.cells(rows)
    ids_BT = np.full(real_BT.shape, pad_id, dtype=np.int64)
    ids_BT[real_BT] = split.ids[cells]
    types_BT = None
    if split.types is not None:
        types_BT = np.zeros(real_BT.shape, dtype=np.int64)
        types_BT[real_BT] = split.types[cells]
    if split.tags is not None:
        targets = np.full(real_BT.shape, -100, dtype=np.int64)
        targets[real_BT] = split.tags[cells]
    else:
        targets = split.labels[rows] if split.labels is not None else _next_tokens(ids_BT, real_BT, split.starts[rows])
    return Batch(
        ids_BT=ids_BT,
        mask_BT=real_BT.astype(np.int64),
        types_BT=types_BT,
        targets=targets,
        tokens=int(lengths_B.sum()),
    )


def _collate_parts(split: TokenizedSplit, rows: IntArray, parts_RP: IntArray, *, pad_id: int) -> Batch:
    """`collate` of rows of several sequences: alternatives become rows of their own, a target becomes the targets."""
    cells = split.cells(rows)
    owners = np.repeat(np.arange(parts_RP.size), parts_RP.reshape(-1))
    target = np.zeros(len(cells), dtype=np.bool_) if split.labels is not None else owners % 2 == 1
    lengths_B = parts_RP.reshape(-1) if split.labels is not None else parts_RP[:, 0]
    types_BT = None if split.types is None else _padded(split.types[cells[~target]], lengths_B, fill=0)
    targets = (
        split.labels[rows] if split.labels is not None else _padded(split.ids[cells[target]], parts_RP[:, 1], fill=-100)
    )
    return Batch(
        ids_BT=_padded(split.ids[cells[~target]], lengths_B, fill=pad_id),
        mask_BT=(np.arange(int(lengths_B.max())) < lengths_B[:, None]).astype(np.int64),
        types_BT=types_BT,
        targets=targets,
        tokens=int(parts_RP.sum()),
    )


def _padded(flat: np.ndarray, lengths_B: IntArray, *, fill: int) -> IntArray:
    """Rows of `lengths_B` numbers each, taken from `flat` in turn, padded on the right with `fill`."""
    real_BT = np.arange(int(lengths_B.max())) < lengths_B[:, None]
    out_BT = np.full(real_BT.shape, fill, dtype=np.int64)
    out_BT[real_BT] = flat
    return out_BT


def _next_tokens(
    ids_BT: IntArray, real_BT: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], starts_B: IntArray
) -> IntArray:
    """Target of each position: the token after it, where that is real and not before the row's first target."""
    targets_BT = np.full(ids_BT.shape, -100, dtype=np.int64)
    columns_T = np.arange(1, ids_BT.shape[1])
    wanted = real_BT[:, 1:] & (columns_T >= starts_B[:, None])
    targets_BT[:, :-1][wanted] = ids_BT[:, 1:][wanted]
    return targets_BT


def batches_of(split: EncodedSplit, batches: Sequence[IntArray], *, pad_id: int) -> Iterator[AnyBatch]:
    """Each of `batches`, in turn."""
    for rows in batches:
        yield split.batch(rows) if isinstance(split, PixelSplit) else collate(split, rows, pad_id=pad_id)


def merged(batches: Sequence[AnyBatch], *, pad_id: int) -> AnyBatch:
    """The rows of all `batches`, batch after batch, padded to the longest of all."""
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, ImageBatch):
        images = [batch for batch in batches if isinstance(batch, ImageBatch)]
        pixels, targets = ([getattr(batch, name) for batch in images] for name in ("pixels_BCHW", "targets"))
        return replace(first, pixels_BCHW=np.concatenate(pixels), targets=np.concatenate(targets))
    texts = [batch for batch in batches if isinstance(batch, Batch)]
    targets: Any = [batch.targets for batch in texts]
    targets = _stacked(targets, fill=-100) if first.targets.ndim > 1 else np.concatenate(targets)
    return Batch(
        ids_BT=_stacked([batch.ids_BT for batch in texts], fill=pad_id),
        mask_BT=_stacked([batch.mask_BT for batch in texts], fill=0),
        types_BT=None if first.types_BT is None else _stacked([batch.types_BT for batch in texts], fill=0),
        targets=targets,
        tokens=sum(batch.tokens for batch in texts),
    )


def _stacked(arrays: Sequence[np.ndarray | None], *, fill: int) -> IntArray:
    """Arrays `[B, T]` one below the other, padded on the right to the widest."""
    rows = [array for array in arrays if array is not None]
    width = max(array.shape[1] for array in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1])), constant_values=fill) for row in rows])
