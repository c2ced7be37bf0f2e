"""From cells of a table to texts and labels: spelling, classes, checks."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np

from autopeft.errors import DataError
from autopeft.trainers.job import TaskSpec
from autopeft.trainers.rows import LabelKind, Split
from autopeft.trainers.tables import Table
from autopeft.trainers.tokens import TokenizedSplit

UNIT: Final = "\x1e"
"""Between the words, and between the tags, of one row; white space to `str.split`."""
OUTSIDE: Final = "O"
"""The tag of a word that is part of nothing."""
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_texts(table: Table, task: TaskSpec, kind: LabelKind) -> list[tuple[str, ...]]:
    """One tuple of strings a row: the text columns; words with `UNIT` between them; a question and its choices.

    Raises:
        DataError: A missing column, a cell of another type, rows with different numbers of choices.
    """
    if kind is LabelKind.TAGS:
        return [(cell,) for cell in _unit_column(table, task.text[0], setting="task.text", names=())]
    if kind is LabelKind.CHOICE and len(task.text) == 2:
        return _choice_rows(table, task)
    return list(zip(*(_text_column(table, column) for column in task.text), strict=True))


def read_labels(table: Table, task: TaskSpec, kind: LabelKind, texts: Sequence[tuple[str, ...]]) -> list[str]:
    """One label a row as written; for tags as many as the row has words, `UNIT` between them.

    Raises:
        DataError: A missing column, an empty label, tags that are not as many as the words.
    """
    if kind is not LabelKind.TAGS:
        return _label_column(table, task)
    assert task.label is not None, "checked with the task"
    names = table.class_names.get(task.label, ())
    tags = _unit_column(table, task.label, setting="task.label", names=names)
    for row, (cells, own) in enumerate(zip(texts, tags, strict=True), start=1):
        n_words, n_tags = len(units(cells[0], kind)), len(units(own, kind))
        if n_words != n_tags:
            raise DataError(
                f"{table.place} row {row}: {n_words} words ({task.text[0]!r}) and {n_tags} tags ({task.label!r})",
                hint="give every word one tag; in plain text both are separated by spaces",
            )
    return tags


def units(cell: str, kind: LabelKind) -> list[str]:
    """The words, or the tags, of one row; a label of another kind is one unit."""
    if kind is not LabelKind.TAGS:
        return [cell]
    return cell.split(UNIT) if cell else []


def align_tags(
    tokens: TokenizedSplit, split: Split, classes: Sequence[str]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The class of every token that begins a word, -100 at the others; aligned to `tokens.ids`."""
    assert tokens.words is not None, "tagged rows are tokenised by word"
    index = {label: number for number, label in enumerate(classes)}
    rows = [units(label, LabelKind.TAGS) for label in split.labels]
    first = np.cumsum([0, *(len(row) for row in rows)])[:-1]
    flat = np.array([index[tag] for tag in chain.from_iterable(rows)], dtype=np.int64)
    at = tokens.words + np.repeat(first, tokens.lengths)
    return np.where(tokens.words >= 0, flat[at], -100)


def _unit_column(table: Table, column: str, *, setting: str, names: Sequence[str]) -> list[str]:
    """Lists, or texts split at white space, as strings with `UNIT` between the parts."""
    cells: list[str] = []
    for row, cell in enumerate(table.column(column, setting=setting), start=1):
        if isinstance(cell, dict):
            raise DataError(
                f"{table.place} row {row}: column {column!r} holds a dict; words are needed",
                hint=f"choose a column of lists, or of texts, for {setting}",
            )
        text = "" if cell is None else str(cell)
        parts = [spell(part, names) for part in cell] if isinstance(cell, list) else text.split()
        if any(not part for part in parts):
            raise DataError(
                f"{table.place} row {row}: a part of {column!r} is empty", hint="take it and its counterpart out"
            )
        cells.append(UNIT.join(" ".join(part.split()) for part in parts))
    return cells


def _choice_rows(table: Table, task: TaskSpec) -> list[tuple[str, ...]]:
    """Question and choices from a column of texts and one of lists."""
    question, column = task.text
    rows: list[tuple[str, ...]] = []
    cells = zip(_text_column(table, question), table.column(column, setting="task.text"), strict=True)
    for row, (text, choices) in enumerate(cells, start=1):
        if not isinstance(choices, list) or len(choices) < 2:
            raise DataError(
                f"{table.place} row {row}: column {column!r} holds no list of two or more choices",
                hint="give lists (json or parquet), or name a column for each choice in task.text",
            )
        if rows and len(choices) != len(rows[0]) - 1:
            raise DataError(
                f"{table.place} row {row}: {len(choices)} choices; row 1 has {len(rows[0]) - 1}",
                hint="every row needs as many choices",
            )
        rows.append((text, *(str(choice) for choice in choices)))
    return rows


def _text_column(table: Table, column: str) -> list[str]:
    cells: list[str] = []
    for row, cell in enumerate(table.column(column, setting="task.text"), start=1):
        if isinstance(cell, (list, dict)):
            raise DataError(
                f"{table.place} row {row}: column {column!r} holds a {type(cell).__name__}; text is needed",
                hint="choose a column of strings for task.text",
            )
        cells.append("" if cell is None else str(cell))
    return cells


def _label_column(table: Table, task: TaskSpec) -> list[str]:
    if task.label is None:
        raise DataError("task.label: got nothing; this task needs a label column")
    names = table.class_names.get(task.label, ())
    labels: list[str] = []
    for row, cell in enumerate(table.column(task.label, setting="task.label"), start=1):
        label = spell(cell, names)
        if not label:
            raise DataError(
                f"{table.place} row {row}: the label ({task.label!r}) is empty",
                hint="give every row a label, or take the row out",
            )
        labels.append(label)
    return labels


def spell(cell: object, names: Sequence[str]) -> str:
    """One spelling a label whatever the file's format: 1, 1.0, "1" and " 1" are `1`; None and NaN are empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if names and isinstance(cell, int) and 0 <= cell < len(names):
        return names[cell]
    text = str(cell).strip()
    return text.removesuffix(".0") if text.removesuffix(".0").lstrip("-").isdigit() else text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def find_classes(train: Split, table: Table, task: TaskSpec, kind: LabelKind) -> tuple[str, ...]:
    """The classes in the order of the head's outputs, as `Splits.classes` says.

    Raises:
        DataError: Fractions, one class only, or a class for every row.
    """
    if kind is LabelKind.CHOICE:
        return _choice_names(train)
    found = {label for row in train.labels for label in units(row, kind)}
    numbers = {label: _number(label) for label in found}
    if any(value is not None and not value.is_integer() for value in numbers.values()):
        fraction = next(label for label, value in numbers.items() if value is not None and not value.is_integer())
        raise DataError(
            f"{train.place}: label {fraction!r} is a fraction, not a class",
            hint="use metric pearson or spearman to learn a number",
        )
    if len(found) == 1:
        raise DataError(
            f"{train.place}: every row has the label {next(iter(found))!r}; two classes are needed",
            hint="check task.label, or that the file is not sorted and cut",
        )
    if kind is LabelKind.CLASS and len(found) == len(train) > 2:
        raise DataError(
            f"{train.place}: every one of the {len(train)} rows has a label of its own",
            hint=f"is {task.label!r} the label column?",
        )
    named = table.class_names.get(task.label or "", ())
    if found <= set(named):
        ordered = [name for name in named if name in found]
    elif all(value is not None for value in numbers.values()):
        ordered = sorted(found, key=lambda label: (float(label), label))
    else:
        ordered = sorted(found)
    return tuple(sorted(ordered, key=lambda label: kind is LabelKind.TAGS and label != OUTSIDE))


def _choice_names(train: Split) -> tuple[str, ...]:
    """What the choices are called: numbers from 0, from 1 (where 0 never occurs and the last one does), or letters."""
    n, found = len(train.texts[0]) - 1, set(train.labels)
    letters = tuple(_LETTERS[:n])
    zero, one = (tuple(str(index + start) for index in range(n)) for start in (0, 1))
    if found <= set(letters):
        return letters
    if "0" not in found and str(n) in found:
        return one
    return zero


def check_labels(split: Split, classes: Sequence[str], kind: LabelKind) -> None:
    """Raise DataError for a label that is none of `classes`, or no number."""
    known = set(classes)
    rows = [(row, label) for row, own in zip(split.rows, split.labels, strict=False) for label in units(own, kind)]
    for row, label in rows:
        if kind is LabelKind.CHOICE and label not in known:
            raise DataError(
                f"{split.place} row {row}: label {label!r} names no choice; the choices are {', '.join(classes)}",
                hint="number the choices from 0 (or from 1), or letter them from A",
            )
        if kind in (LabelKind.CLASS, LabelKind.TAGS) and label not in known:
            shown = ", ".join(map(repr, classes[:20])) + (", ..." if len(classes) > 20 else "")
            raise DataError(
                f"{split.place} row {row}: label {label!r} is not in train; train has {shown}",
                hint="spell the label as train does, or add rows of that class to train",
            )
        value = _number(label)
        if kind is LabelKind.NUMBER and (value is None or not math.isfinite(value)):
            raise DataError(
                f"{split.place} row {row}: label {label!r} is not a finite number",
                hint="use metric accuracy, f1 or matthews for classes",
            )
