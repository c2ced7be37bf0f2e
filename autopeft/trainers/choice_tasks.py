"""Which of several answers to a question is right: each is read with the question and given one score.

Letters: B rows, C choices, T tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from autopeft.trainers import metrics
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.task_kind import Task, cross_entropy, inputs
from autopeft.trainers.text_tasks import encode_texts
from autopeft.trainers.tokens import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Outputs = tuple[torch.Tensor, torch.Tensor]

_MOST_CHOICES = 26


def _encode_choices(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], max_length: int
) -> list[Row]:
    """Question and choice as a pair, once for every choice; each pair is cut as a pair of texts is."""
    pairs = [(question, choice) for question, *choices in texts for choice in choices]
    rows = encode_texts(tokenizer, pairs, max_length)
    n = len(texts[0]) - 1
    return [_joined(rows[first : first + n]) for first in range(0, len(rows), n)]


def _joined(rows: Sequence[Row]) -> Row:
    types = None if rows[0].types is None else [kind for row in rows for kind in row.types or ()]
    return Row(ids=[token for row in rows for token in row.ids], types=types, parts=[len(row.ids) for row in rows])


def _choice_outputs(model: "PreTrainedModel", batch: AnyBatch, device: "torch.device") -> "Outputs":
    """One score a choice `[B, C]`, and the right choice `[B]`."""
    import torch

    n_rows = len(batch.targets)
    given = {name: tensor.unflatten(0, (n_rows, -1)) for name, tensor in inputs(batch, device).items()}
    logits_BC = model(**given).logits
    return logits_BC.float(), torch.from_numpy(batch.targets).to(device, non_blocking=True)


CHOICES = Task(
    metrics=tuple(metrics.CHOICE_METRICS),
    label=LabelKind.CHOICE,
    encoding="choices",
    encode=_encode_choices,
    outputs=_choice_outputs,
    loss=cross_entropy,
    statistics=lambda logits_BC, _: logits_BC,
    score=lambda names, logits_BC, target_B: metrics.class_metrics(names, logits_BC, target_B.astype(np.int64)),
    min_texts=2,
    max_texts=1 + _MOST_CHOICES,
)
