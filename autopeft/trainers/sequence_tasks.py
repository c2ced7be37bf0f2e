"""From a source text to a target text, with an encoder and a decoder.

Letters: B rows, S target tokens, V vocabulary, N target tokens of the batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from autopeft.trainers import metrics
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.task_kind import Task, cross_entropy
from autopeft.trainers.text_tasks import picked_tokens, token_statistics
from autopeft.trainers.tokens import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Outputs = tuple[torch.Tensor, torch.Tensor]


def _encode_sequences(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], max_length: int
) -> list[Row]:
    """Source and target, each as the tokenizer frames it and each cut at the end; the target ends with an end token."""
    sources, targets = (list(column) for column in zip(*texts, strict=True))
    read = cast("list[list[int]]", tokenizer(sources, truncation=True, max_length=max_length)["input_ids"])
    written = cast("list[list[int]]", tokenizer(text_target=targets, verbose=False)["input_ids"])
    end = cast("int | None", tokenizer.eos_token_id)
    rows: list[Row] = []
    for source, target in zip(read, written, strict=True):
        whole = target if end is None or target[-1:] == [end] else [*target, end]
        kept = whole if len(whole) <= max_length else whole[:max_length]
        rows.append(Row(ids=[*source, *kept], parts=[len(source), len(kept)]))
    return rows


def _sequence_outputs(model: "PreTrainedModel", batch: AnyBatch, device: "torch.device") -> "Outputs":
    """Logits `[N, V]` of the target tokens, each given the ones before it, float32, and the tokens `[N]`."""
    logits_NV, targets_N = _picked_targets(model, batch, device)
    return logits_NV.float(), targets_N


def _picked_targets(model: "PreTrainedModel", batch: AnyBatch, device: "torch.device") -> "Outputs":
    """The same in the model's dtype."""
    import torch

    from autopeft.trainers.model import decoder_inputs

    labels_BS = torch.from_numpy(batch.targets).to(device, non_blocking=True)
    read_BS, real_BS = decoder_inputs(model, labels_BS), (labels_BS != -100).long()
    return picked_tokens(model, batch, device, decoder_input_ids=read_BS, decoder_attention_mask=real_BS)


SEQUENCES = Task(
    metrics=metrics.TOKEN_METRICS,
    label=LabelKind.NONE,
    encoding="sequences",
    encode=_encode_sequences,
    outputs=_sequence_outputs,
    picked=_picked_targets,
    loss=cross_entropy,
    statistics=token_statistics,
    score=lambda names, statistics_N2, _: metrics.token_metrics(names, statistics_N2[:, 0], statistics_N2[:, 1]),
    min_texts=2,
)
