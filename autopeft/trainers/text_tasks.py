"""Ways to learn from whole texts: classes, numbers, and the texts themselves.

Letters: B rows, T tokens, H hidden width, V vocabulary, C classes, N scored items (rows, or target tokens).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from autopeft.trainers import metrics
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.task_kind import Task, cross_entropy, inputs
from autopeft.trainers.tokens import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Outputs = tuple[torch.Tensor, torch.Tensor]


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], max_length: int) -> list[Row]:
    """One or two texts with the model's own special tokens; too long a pair loses tokens of its longer text first."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    second = columns[1] if len(columns) == 2 else None
    encoded = tokenizer(columns[0], second, truncation=True, max_length=max_length)
    ids = cast("list[list[int]]", encoded["input_ids"])
    types = cast("list[list[int] | None]", encoded.get("token_type_ids") or [None] * len(ids))
    return [Row(ids=row, types=kinds) for row, kinds in zip(ids, types, strict=True)]


def _encode_language(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], max_length: int
) -> list[Row]:
    """Rows for language modelling.

    One text: every token is a target but the first, cut at the end. Prompt and completion: they are tokenised apart,
    an end token follows, only completion and end are targets; what is too long loses the oldest prompt tokens first,
    then the completion's end.
    """
    plain = [
        cast("list[list[int]]", tokenizer(list(column), add_special_tokens=False, verbose=False)["input_ids"])
        for column in zip(*texts, strict=True)
    ]
    end = cast("int | None", tokenizer.eos_token_id)
    begin = [token for token in cast("list[int]", tokenizer("")["input_ids"]) if token != end]
    if len(plain) == 1:
        return [Row(ids=(begin + ids)[:max_length], start=1) for ids in plain[0]]
    return [
        _join(begin, prompt, [*completion, *([] if end is None else [end])], max_length)
        for prompt, completion in zip(plain[0], plain[1], strict=True)
    ]


def _join(begin: list[int], prompt: list[int], completion: list[int], max_length: int) -> Row:
    kept = max(0, max_length - len(begin) - len(completion))
    head = begin + (prompt[-kept:] if kept else [])
    ids = (head + completion)[:max_length]
    return Row(ids=ids, start=max(1, len(head)))


def _row_outputs(model: "PreTrainedModel", batch: AnyBatch, device: "torch.device") -> "Outputs":
    import torch

    logits_BC = model(**inputs(batch, device)).logits
    return logits_BC.float(), torch.from_numpy(batch.targets).to(device, non_blocking=True)


def _number_outputs(model: "PreTrainedModel", batch: AnyBatch, device: "torch.device") -> "Outputs":
    logits_B1, targets_B = _row_outputs(model, batch, device)
    return logits_B1[:, 0], targets_B


def token_outputs(model: "PreTrainedModel", batch: AnyBatch, device: "torch.device") -> "Outputs":
    """`picked_tokens`, float32."""
    logits_NV, targets_N = picked_tokens(model, batch, device)
    return logits_NV.float(), targets_N


def picked_tokens(
    model: "PreTrainedModel", batch: AnyBatch, device: "torch.device", **more: "torch.Tensor"
) -> "Outputs":
    """Logits of the positions that have a target, and of no other: the rest of `[B, T, V]` is never made.

    The rows are picked before the vocabulary projection, so that whatever the model does to its logits is still done.
    `more` is what the model is called with besides.
    """
    import torch

    chosen = np.flatnonzero(batch.targets.reshape(-1) != -100)
    chosen_N = torch.from_numpy(chosen).to(device, non_blocking=True)
    targets_N = torch.from_numpy(batch.targets.reshape(-1)[chosen]).to(device, non_blocking=True)

    def pick(_: object, hidden: "tuple[torch.Tensor, ...]") -> "torch.Tensor":
        return hidden[0].flatten(0, 1).index_select(0, chosen_N)[None]

    head = model.get_output_embeddings()
    assert head is not None, "a language model has a vocabulary projection"
    handle = head.register_forward_pre_hook(pick)
    try:
        logits_1NV = model(**inputs(batch, device), **more).logits
    finally:
        handle.remove()
    return logits_1NV[0], targets_N


def _squared_error(outputs_N: "torch.Tensor", targets_N: "torch.Tensor") -> "torch.Tensor":
    from torch.nn import functional

    return functional.mse_loss(outputs_N, targets_N)


def token_statistics(logits_NV: "torch.Tensor", targets_N: "torch.Tensor") -> "torch.Tensor":
    """Loss and hit (1 or 0) of every target token, `[N, 2]`."""
    import torch
    from torch.nn import functional

    loss_N = functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return torch.stack([loss_N, (logits_NV.argmax(-1) == targets_N).float()], dim=1)


CLASSES = Task(
    metrics=tuple(metrics.CLASS_METRICS),
    label=LabelKind.CLASS,
    encoding="text",
    encode=encode_texts,
    outputs=_row_outputs,
    loss=cross_entropy,
    statistics=lambda logits_NC, _: logits_NC,
    score=lambda names, logits_NC, target_N: metrics.class_metrics(names, logits_NC, target_N.astype(np.int64)),
)
NUMBERS = Task(
    metrics=tuple(metrics.NUMBER_METRICS),
    label=LabelKind.NUMBER,
    encoding="text",
    encode=encode_texts,
    outputs=_number_outputs,
    loss=_squared_error,
    statistics=lambda outputs_N, _: outputs_N[:, None],
    score=lambda names, outputs_N1, target_N: metrics.number_metrics(names, outputs_N1[:, 0], target_N),
)
TOKENS = Task(
    metrics=metrics.TOKEN_METRICS,
    label=LabelKind.NONE,
    encoding="language",
    encode=_encode_language,
    outputs=token_outputs,
    picked=picked_tokens,
    loss=cross_entropy,
    statistics=token_statistics,
    score=lambda names, statistics_N2, _: metrics.token_metrics(names, statistics_N2[:, 0], statistics_N2[:, 1]),
)
