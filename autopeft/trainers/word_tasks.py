"""A class for every word of a text (named entities, parts of speech), scored at each word's first token.

Letters: B rows, T tokens, C classes, N tagged words of the batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from autopeft.errors import ModelError
from autopeft.trainers import metrics
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.labels import units
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.task_kind import Task, cross_entropy, inputs
from autopeft.trainers.tokens import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Outputs = tuple[torch.Tensor, torch.Tensor]


def _encode_words(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], max_length: int) -> list[Row]:
    """The words with single spaces between them, cut at the end; a token belongs to the word its last letter is in.

    Raises:
        ModelError: The tokenizer cannot say which letters a token stands for.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__}: token-classification needs a tokenizer that knows where its tokens stand",
            hint="give the model's folder a tokenizer.json",
        )
    words = [units(cells[0], LabelKind.TAGS) for cells in texts]
    encoded = tokenizer(
        [" ".join(row) for row in words], truncation=True, max_length=max_length, return_offsets_mapping=True
    )
    ids = cast("list[list[int]]", encoded["input_ids"])
    types = cast("list[list[int] | None]", encoded.get("token_type_ids") or [None] * len(ids))
    spans = cast("list[list[tuple[int, int]]]", encoded["offset_mapping"])
    return [
        Row(ids=row, types=kinds, words=_begun(spans_T, own))
        for row, kinds, spans_T, own in zip(ids, types, spans, words, strict=True)
    ]


def _begun(spans_T: Sequence[tuple[int, int]], words: Sequence[str]) -> list[int]:
    """Which of `words` each token is the first of; -1 for special tokens and later parts of a word."""
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
    first, last = np.array(spans_T, dtype=np.int64).reshape(-1, 2).T
    word_T = np.where(last > first, np.searchsorted(starts, last - 1, side="right") - 1, -1)
    begun: list[int] = []
    seen = -1
    for word in word_T.tolist():
        begun.append(word if word > seen else -1)
        seen = max(seen, word)
    return begun


def _word_outputs(model: "PreTrainedModel", batch: AnyBatch, device: "torch.device") -> "Outputs":
    """Logits `[N, C]` and classes `[N]` of the tagged tokens."""
    import torch

    flat = batch.targets.reshape(-1)
    chosen = np.flatnonzero(flat != -100)
    logits_BTC = model(**inputs(batch, device)).logits
    chosen_N = torch.from_numpy(chosen).to(device, non_blocking=True)
    targets_N = torch.from_numpy(flat[chosen]).to(device, non_blocking=True)
    return logits_BTC.flatten(0, 1).index_select(0, chosen_N).float(), targets_N


WORDS = Task(
    metrics=tuple(metrics.TAG_METRICS),
    label=LabelKind.TAGS,
    encoding="words",
    encode=_encode_words,
    outputs=_word_outputs,
    loss=cross_entropy,
    statistics=lambda logits_NC, _: logits_NC,
    score=lambda names, logits_NC, target_N: metrics.tag_metrics(names, logits_NC, target_N.astype(np.int64)),
    max_texts=1,
)
