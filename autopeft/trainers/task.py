"""What a task is: how its rows become tokens, what the model is asked, how it is scored.

Nothing heavy is imported before a model is used, so that `check_task` answers at once.

Letters: B rows, T tokens, H hidden width, V vocabulary, C classes, N scored items (rows, or target tokens).
"""

import difflib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from autopeft.errors import DataError, SpecError
from autopeft.objectives.objective import METRICS
from autopeft.trainers import metrics
from autopeft.trainers.batches import Batch
from autopeft.trainers.data import SPLITS, LabelKind, Split, Splits, load_splits, text_key
from autopeft.trainers.job import TaskSpec
from autopeft.trainers.metrics import FloatArray
from autopeft.trainers.tokens import Encoder, Row, TokenizedSplit, tokenize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Outputs = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One way to learn and to score; stateless."""

    metrics: tuple[str, ...]
    """Names it can measure."""
    label: LabelKind
    encoding: str
    """Names what `encode` does, for the token cache."""
    encode: Encoder
    """Texts to rows of tokens, each at most the given length."""
    outputs: Callable[["PreTrainedModel", Batch, "torch.device"], "Outputs"]
    """Runs the model on a batch: float32 outputs, `[N, C]`, `[N]` or `[N, V]`, and their targets `[N]`."""
    loss: Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    """Mean loss of outputs against targets."""
    statistics: Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    """What scoring needs of outputs and targets, `[N, k]` with k small."""
    score: Callable[[Sequence[str], FloatArray, FloatArray], dict[str, float]]
    """Metrics by name, and `loss`, from all statistics `[N, k]` and targets `[N]` of a split."""

    def labels(self, split: Split, classes: Sequence[str]) -> "np.ndarray | None":
        """One int64 class or float32 number a row; None where tokens are the targets."""
        if self.label is LabelKind.NONE:
            return None
        if self.label is LabelKind.NUMBER:
            return np.array([float(label) for label in split.labels], dtype=np.float32)
        index = {label: number for number, label in enumerate(classes)}
        return np.array([index[label] for label in split.labels], dtype=np.int64)

    def n_labels(self, classes: Sequence[str]) -> int | None:
        """Width of the new head; None where the model's own is used."""
        return {LabelKind.CLASS: len(classes), LabelKind.NUMBER: 1, LabelKind.NONE: None}[self.label]


def _encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], max_length: int) -> list[Row]:
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


def _inputs(batch: Batch, device: "torch.device") -> "dict[str, torch.Tensor]":
    import torch

    arrays = {"input_ids": batch.ids_BT, "attention_mask": batch.mask_BT}
    if batch.types_BT is not None:
        arrays["token_type_ids"] = batch.types_BT
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}


def _row_outputs(model: "PreTrainedModel", batch: Batch, device: "torch.device") -> "Outputs":
    import torch

    logits_BC = model(**_inputs(batch, device)).logits
    return logits_BC.float(), torch.from_numpy(batch.targets).to(device, non_blocking=True)


def _number_outputs(model: "PreTrainedModel", batch: Batch, device: "torch.device") -> "Outputs":
    logits_B1, targets_B = _row_outputs(model, batch, device)
    return logits_B1[:, 0], targets_B


def _token_outputs(model: "PreTrainedModel", batch: Batch, device: "torch.device") -> "Outputs":
    """Logits of the positions that have a target, and of no other: the rest of `[B, T, V]` is never made.

    The rows are picked before the vocabulary projection, so that whatever the model does to its logits is still done.
    """
    import torch

    chosen = np.flatnonzero(batch.targets.reshape(-1) != -100)
    chosen_N = torch.from_numpy(chosen).to(device, non_blocking=True)
    targets_N = torch.from_numpy(batch.targets.reshape(-1)[chosen]).to(device, non_blocking=True)

    def pick(_: object, hidden: "tuple[torch.Tensor, ...]") -> "torch.Tensor":
        return hidden[0].flatten(0, 1).index_select(0, chosen_N)[None]

    head = model.get_output_embeddings()
    assert head is not None, "a causal-lm model has a vocabulary projection"
    handle = head.register_forward_pre_hook(pick)
    try:
        logits_1NV = model(**_inputs(batch, device)).logits
    finally:
        handle.remove()
    return logits_1NV[0].float(), targets_N


def _cross_entropy(logits_NC: "torch.Tensor", targets_N: "torch.Tensor") -> "torch.Tensor":
    from torch.nn import functional

    return functional.cross_entropy(logits_NC, targets_N)


def _squared_error(outputs_N: "torch.Tensor", targets_N: "torch.Tensor") -> "torch.Tensor":
    from torch.nn import functional

    return functional.mse_loss(outputs_N, targets_N)


def _token_statistics(logits_NV: "torch.Tensor", targets_N: "torch.Tensor") -> "torch.Tensor":
    """Loss and hit (1 or 0) of every target token, `[N, 2]`."""
    import torch
    from torch.nn import functional

    loss_N = functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return torch.stack([loss_N, (logits_NV.argmax(-1) == targets_N).float()], dim=1)


_CLASSES = Task(
    metrics=tuple(metrics.CLASS_METRICS),
    label=LabelKind.CLASS,
    encoding="text",
    encode=_encode_texts,
    outputs=_row_outputs,
    loss=_cross_entropy,
    statistics=lambda logits_NC, _: logits_NC,
    score=lambda names, logits_NC, target_N: metrics.class_metrics(names, logits_NC, target_N.astype(np.int64)),
)
_NUMBERS = Task(
    metrics=tuple(metrics.NUMBER_METRICS),
    label=LabelKind.NUMBER,
    encoding="text",
    encode=_encode_texts,
    outputs=_number_outputs,
    loss=_squared_error,
    statistics=lambda outputs_N, _: outputs_N[:, None],
    score=lambda names, outputs_N1, target_N: metrics.number_metrics(names, outputs_N1[:, 0], target_N),
)
_TOKENS = Task(
    metrics=metrics.TOKEN_METRICS,
    label=LabelKind.NONE,
    encoding="language",
    encode=_encode_language,
    outputs=_token_outputs,
    loss=_cross_entropy,
    statistics=_token_statistics,
    score=lambda names, statistics_N2, _: metrics.token_metrics(names, statistics_N2[:, 0], statistics_N2[:, 1]),
)

TASKS: Mapping[str, tuple[Task, ...]] = {
    "text-classification": (_CLASSES, _NUMBERS),
    "causal-lm": (_TOKENS,),
}
"""Ways to learn each kind of task; the metric chooses among them (a correlation needs numbers for labels)."""


def resolve_task(spec: TaskSpec) -> Task:
    """The way to learn `spec`.

    Raises:
        SpecError: An unknown kind or metric, metrics that cannot be measured together, a wrong number of text columns,
            a label that is missing or out of place.
    """
    if spec.kind not in TASKS:
        near = difflib.get_close_matches(spec.kind, TASKS, n=1)
        raise SpecError(
            f"task.kind: got {spec.kind!r}; allowed are {', '.join(TASKS)}",
            hint=f"did you mean {near[0]!r}?" if near else "",
        )
    variants = TASKS[spec.kind]
    allowed = [name for task in variants for name in task.metrics]
    for name in (spec.metric, *spec.extra_metrics):
        if name not in allowed:
            near = difflib.get_close_matches(name, METRICS, n=1)
            raise SpecError(
                f"task.metric: got {name!r}; {spec.kind} measures {', '.join(allowed)}",
                hint=f"did you mean {near[0]!r}?" if near and near[0] in allowed else "",
            )
    task = next(task for task in variants if spec.metric in task.metrics)
    foreign = [name for name in spec.extra_metrics if name not in task.metrics]
    if foreign:
        raise SpecError(
            f"task.extra_metrics: {foreign[0]!r} cannot be measured beside {spec.metric!r}; "
            f"allowed are {', '.join(task.metrics)}"
        )
    _check_columns(spec, task)
    return task


def _check_columns(spec: TaskSpec, task: Task) -> None:
    if len(spec.text) not in (1, 2) or len(set(spec.text)) < len(spec.text):
        raise SpecError(f"task.text: got {list(spec.text)}; one or two different columns are needed")
    if task.label is LabelKind.NONE and spec.label is not None:
        raise SpecError(
            f"task.label: got {spec.label!r}; {spec.kind} has no label",
            hint=f"leave it out, or set task.text to [{spec.text[0]}, {spec.label}] for prompt and completion",
        )
    if task.label is not LabelKind.NONE and spec.label is None:
        raise SpecError(f"task.label: got nothing; {spec.kind} needs a label column", hint="set task.label")


def load_task(spec: TaskSpec, *, seed: int) -> tuple[Task, Splits]:
    """The task and its checked rows.

    Raises:
        SpecError: As `resolve_task`.
        DataError: As `load_splits`.
    """
    task = resolve_task(spec)
    return task, load_splits(spec, task.label, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """What `check` shows of a task's data."""

    rows: Mapping[str, int]
    """Rows of each split."""
    places: Mapping[str, str]
    """Where the rows of each split were read from."""
    classes: Mapping[str, int]
    """Rows of each class in train, in class order; empty when labels are no classes."""
    words_median: int
    """Words (between white space) of the median training text, all its columns together."""
    words_95: int
    """Words that 95 % of the training texts do not exceed."""
    shared_with_train: Mapping[str, int]
    """Rows of validation and test whose text also stands in train."""


def check_task(spec: TaskSpec, *, seed: int = 0) -> TaskSummary:
    """Read and check the data of `spec` without a model.

    Raises:
        SpecError: As `resolve_task`.
        DataError: As `load_splits`.
    """
    _, splits = load_task(spec, seed=seed)
    words = [sum(len(cell.split()) for cell in cells) for cells in splits.train.texts]
    median, high = np.percentile(words, [50, 95], method="higher")
    counts = Counter(splits.train.labels)
    train_keys = {text_key(cells) for cells in splits.train.texts}
    held_out = (splits.validation, splits.test)
    return TaskSummary(
        rows={name: len(splits.split(name)) for name in SPLITS},
        places={name: splits.split(name).place for name in SPLITS},
        classes={label: counts[label] for label in splits.classes},
        words_median=int(median),
        words_95=int(high),
        shared_with_train={
            split.name: sum(text_key(cells) in train_keys for cells in split.texts) for split in held_out
        },
    )


def tokenize_split(
    task: Task,
    split: Split,
    *,
    classes: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    cache: Path | None,
) -> TokenizedSplit:
    """`split` as tokens and labels; rows that hold nothing to learn (no token, no target) are left out with a warning.

    Raises:
        DataError: No row is left.
    """
    tokens = tokenize(
        split.texts, tokenizer, encoder=task.encode, encoding=task.encoding, max_length=max_length, cache=cache
    )
    labelled = replace(tokens, labels=task.labels(split, classes))
    kept = np.flatnonzero(tokens.lengths > tokens.starts)
    if len(kept) == len(split):
        return labelled
    if not len(kept):
        raise DataError(
            f"{split.place}: no row of the {split.name} split has a token to predict",
            hint="check task.text and training.max_length",
        )
    first = split.rows[int(np.setdiff1d(np.arange(len(split)), kept)[0])]
    n_dropped = len(split) - len(kept)
    warnings.warn(
        f"{split.place}: {n_dropped} rows with no token to predict are left out (the first is row {first})",
        stacklevel=2,
    )
    return labelled.take(kept)
