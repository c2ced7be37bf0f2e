"""One way to learn and to score a task, and the pieces that several ways share.

Letters: B rows, T tokens, H hidden width, V vocabulary, C classes, N scored items (rows, tokens or words).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from autopeft.trainers.batches import AnyBatch, Batch
from autopeft.trainers.labels import align_tags
from autopeft.trainers.metrics import FloatArray
from autopeft.trainers.rows import LabelKind, Split
from autopeft.trainers.tokens import Encoder, TokenizedSplit

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Outputs = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One way to learn and to score; stateless."""

    metrics: tuple[str, ...]
    """Names it can measure."""
    label: LabelKind
    encoding: str
    """Names what `encode` does, for the token cache."""
    encode: Encoder | None
    """Texts to rows of tokens, each at most the given length; None where images are read."""
    outputs: Callable[["PreTrainedModel", AnyBatch, "torch.device"], "Outputs"]
    """Runs the model on a batch: float32 outputs, `[N, C]`, `[N]` or `[N, V]`, and their targets `[N]`."""
    loss: Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    """Mean loss of outputs against targets."""
    statistics: Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    """What scoring needs of outputs and targets, `[N, k]` with k small."""
    score: Callable[[Sequence[str], FloatArray, FloatArray], dict[str, float]]
    """Metrics by name, and `loss`, from all statistics `[N, k]` and targets `[N]` of a split."""

    picked: Callable[["PreTrainedModel", AnyBatch, "torch.device"], "Outputs"] | None = None
    """Of a language model: `outputs` as its output embedding gives them, in the model's dtype."""
    min_texts: int = 1
    """Text columns it takes at least."""
    max_texts: int = 2
    """Text columns it takes at most."""

    @property
    def reads_images(self) -> bool:
        return self.encode is None

    def labels(self, split: Split, classes: Sequence[str]) -> "np.ndarray | None":
        """One int64 class or float32 number a row; None where the targets are tokens or stand at tokens."""
        if self.label in (LabelKind.NONE, LabelKind.TAGS):
            return None
        if self.label is LabelKind.NUMBER:
            return np.array([float(label) for label in split.labels], dtype=np.float32)
        index = {label: number for number, label in enumerate(classes)}
        return np.array([index[label] for label in split.labels], dtype=np.int64)

    def labelled(self, tokens: TokenizedSplit, split: Split, classes: Sequence[str]) -> TokenizedSplit:
        """`tokens` of `split` with what they are to be mapped to."""
        if self.label is LabelKind.TAGS:
            return replace(tokens, tags=align_tags(tokens, split, classes))
        return replace(tokens, labels=self.labels(split, classes))

    def n_labels(self, classes: Sequence[str]) -> int | None:
        """Width of the new head; None where the model's own is used."""
        widths = {LabelKind.NUMBER: 1, LabelKind.CHOICE: 1, LabelKind.NONE: None}
        return widths.get(self.label, len(classes))


def inputs(batch: AnyBatch, device: "torch.device") -> "dict[str, torch.Tensor]":
    """What the model is called with, on its device."""
    import torch

    assert isinstance(batch, Batch), "images are given by `image_tasks`"
    arrays = {"input_ids": batch.ids_BT, "attention_mask": batch.mask_BT}
    if batch.types_BT is not None:
        arrays["token_type_ids"] = batch.types_BT
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}


def cross_entropy(logits_NC: "torch.Tensor", targets_N: "torch.Tensor") -> "torch.Tensor":
    """Mean over N, nats."""
    from torch.nn import functional

    return functional.cross_entropy(logits_NC, targets_N)
