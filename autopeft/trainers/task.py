"""What a task is: how its rows become tokens, what the model is asked, how it is scored.

Nothing heavy is imported before a model is used, so that `check_task` answers at once.
"""

import difflib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autopeft.errors import DataError, SpecError
from autopeft.objectives.objective import METRICS
from autopeft.trainers.choice_tasks import CHOICES
from autopeft.trainers.data import SPLITS, LabelKind, Split, Splits, load_splits, text_key
from autopeft.trainers.image_tasks import IMAGES
from autopeft.trainers.job import TaskSpec
from autopeft.trainers.labels import OUTSIDE, units
from autopeft.trainers.pictures import Picture, in_threads
from autopeft.trainers.pixels import PixelSplit, read_pixels
from autopeft.trainers.sequence_tasks import SEQUENCES
from autopeft.trainers.task_kind import Task
from autopeft.trainers.text_tasks import CLASSES, NUMBERS, TOKENS
from autopeft.trainers.tokens import TokenizedSplit, tokenize
from autopeft.trainers.word_tasks import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from autopeft.trainers.image_reader import ImageReader

TASKS: Mapping[str, tuple[Task, ...]] = {
    "text-classification": (CLASSES, NUMBERS),
    "token-classification": (WORDS,),
    "multiple-choice": (CHOICES,),
    "causal-lm": (TOKENS,),
    "seq2seq": (SEQUENCES,),
    "image-classification": (IMAGES,),
}
"""Ways to learn each kind of task; the metric chooses among them (a correlation needs numbers for labels)."""


def resolve_task(spec: TaskSpec) -> Task:
    """The way to learn `spec`.

    Raises:
        SpecError: An unknown kind or metric, metrics that cannot be measured together, a wrong number of text columns,
            a column of images or labels that is missing or out of place.
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
    _check_images(spec, task)
    low, high = task.min_texts, task.max_texts
    if not task.reads_images and (not low <= len(spec.text) <= high or len(set(spec.text)) < len(spec.text)):
        words = {1: "one", 2: "two"}
        wanted = {
            (1, 2): "one or two different columns are needed",
            (1, 1): "one column is needed",
            (2, 2): "two different columns, source and target, are needed",
        }.get((low, high), f"{words[low]} or more different columns are needed: a question and its choices")
        raise SpecError(f"task.text: got {list(spec.text)}; {wanted}")
    if task.label is LabelKind.NONE and spec.label is not None:
        roles = "prompt and completion" if spec.kind == "causal-lm" else "source and target"
        raise SpecError(
            f"task.label: got {spec.label!r}; {spec.kind} has no label",
            hint=f"leave it out, or set task.text to [{spec.text[0]}, {spec.label}] for {roles}",
        )
    if task.label is not LabelKind.NONE and spec.label is None:
        raise SpecError(f"task.label: got nothing; {spec.kind} needs a label column", hint="set task.label")


def _check_images(spec: TaskSpec, task: Task) -> None:
    if task.reads_images and spec.text:
        raise SpecError(
            f"task.text: got {list(spec.text)}; {spec.kind} reads images",
            hint=f"leave it out, or write `image: {spec.text[0]}` if that column holds the images",
        )
    if task.reads_images and spec.image is None:
        raise SpecError(
            f"task.image: got nothing; {spec.kind} needs a column of images or of their paths",
            hint="set task.image; in a folder of class folders the column is called image",
        )
    if spec.image is not None and not task.reads_images:
        raise SpecError(
            f"task.image: got {spec.image!r}; {spec.kind} reads texts",
            hint="leave it out, or use the task kind image-classification",
        )


def load_task(spec: TaskSpec, *, seed: int) -> tuple[Task, Splits]:
    """The task and its checked rows.

    Raises:
        SpecError: As `resolve_task`.
        DataError: As `load_splits`, or `micro_f1` without the tag it leaves out.
    """
    task = resolve_task(spec)
    splits = load_splits(spec, task.label, seed=seed)
    if "micro_f1" in (spec.metric, *spec.extra_metrics) and OUTSIDE not in splits.classes:
        raise DataError(
            f"{splits.train.place}: micro_f1 leaves the tag {OUTSIDE!r} out, which column {spec.label!r} does not have",
            hint="use accuracy or f1",
        )
    return task, splits


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
    """Words (between white space) of the median training text, all its columns together; 1 for an image."""
    words_95: int
    """Words that 95 % of the training texts do not exceed."""
    shared_with_train: Mapping[str, int]
    """Rows of validation and test whose text also stands in train."""


def check_task(spec: TaskSpec, *, seed: int = 0) -> TaskSummary:
    """Read and check the data of `spec` without a model; every image is decoded once.

    Raises:
        SpecError: As `resolve_task`.
        DataError: As `load_splits`, or an image that cannot be decoded.
    """
    task, splits = load_task(spec, seed=seed)
    for name in SPLITS:
        for _ in in_threads(Picture.check, splits.split(name).images):
            pass
    words = [sum(len(cell.split()) for cell in cells) for cells in splits.train.texts]
    median, high = np.percentile(words, [50, 95], method="higher")
    counts = Counter(label for row in splits.train.labels for label in units(row, task.label))
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
    assert task.encode is not None, "images are read by `read_split`"
    tokens = tokenize(
        split.texts, tokenizer, encoder=task.encode, encoding=task.encoding, max_length=max_length, cache=cache
    )
    labelled = task.labelled(tokens, split, classes)
    kept = np.flatnonzero(labelled.learnable)
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


def read_split(
    task: Task,
    split: Split,
    *,
    classes: Sequence[str],
    reader: "ImageReader",
    n_tokens: int,
    cache: Path | None,
) -> PixelSplit:
    """`split` as pixels and labels.

    Args:
        task: One that reads images.
        split: Its rows.
        classes: In the order of the head's outputs.
        reader: The model's image processor.
        n_tokens: That the model makes of an image.
        cache: Folder of the cache; None keeps nothing.

    Raises:
        DataError: An image that cannot be decoded.
    """
    labels = task.labels(split, classes)
    assert labels is not None, "images have classes"
    return PixelSplit(
        pixels=read_pixels(split.images, [digest for (digest,) in split.texts], reader, cache=cache),
        scale_C=reader.scale_C,
        shift_C=reader.shift_C,
        n_tokens=n_tokens,
        labels=labels.astype(np.int64),
    )
