"""Batches as large as training has them, of nothing in particular."""

import numpy as np

from autopeft.spaces.model_shape import ImageInput
from autopeft.trainers.batches import AnyBatch, Batch
from autopeft.trainers.pixels import ImageBatch
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.task_kind import Task


def example_batch(task: Task, *, rows: int, sequences: int, length: int, image: ImageInput | None = None) -> AnyBatch:
    """A batch of `rows` sequences of `length` tokens, as many targets as it can have.

    All rows but the first are a token shorter: a batch without padding needs no mask, and few batches have none.

    Args:
        task: How it is learned; where its rows are texts of their own every token but the first is a target, where
            they are a source and a target both are `length` tokens long.
        rows: Sequences, alternatives counted one by one.
        sequences: Alternatives a row.
        length: Tokens of each.
        image: For a model that reads images: the batch is of those, and their size is all that counts.
    """
    if image is not None:
        return _images(image, rows)
    ids_BT = np.ones((rows, length), dtype=np.int64)
    mask_BT = np.ones((rows, length), dtype=np.int64)
    mask_BT[1:, -1] = 0
    return Batch(
        ids_BT=ids_BT,
        mask_BT=mask_BT,
        types_BT=None,
        targets=_targets(task, ids_BT, sequences=sequences),
        tokens=rows * length,
    )


def _images(image: ImageInput, rows: int) -> ImageBatch:
    return ImageBatch(
        pixels_BCHW=np.zeros((rows, image.n_channels, image.height, image.width), dtype=np.uint8),
        scale_C=np.ones(image.n_channels, dtype=np.float32),
        shift_C=np.zeros(image.n_channels, dtype=np.float32),
        targets=np.zeros(rows, dtype=np.int64),
        n_tokens=image.n_tokens,
    )


def _targets(
    task: Task, ids_BT: np.ndarray[tuple[int, ...], np.dtype[np.int64]], *, sequences: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]] | np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    n = len(ids_BT)
    if task.label is LabelKind.NUMBER:
        return np.zeros(n, dtype=np.float32)
    if task.label is LabelKind.TAGS or task.encoding == "sequences":
        return np.zeros_like(ids_BT)
    if task.label is LabelKind.NONE:
        targets = np.zeros_like(ids_BT)
        targets[:, -1] = -100
        return targets
    return np.zeros(n // sequences, dtype=np.int64)
