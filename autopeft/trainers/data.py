"""Rows of a task in three splits: train, validation (the search sees it) and test (held out, the search never does)."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autopeft.errors import DataError
from autopeft.trainers.job import DataSpec, TaskSpec
from autopeft.trainers.labels import check_labels, find_classes, read_labels, read_texts
from autopeft.trainers.pictures import Picture, in_threads, read_pictures
from autopeft.trainers.rows import LabelKind, Split, Splits
from autopeft.trainers.sources import read_sources
from autopeft.trainers.tables import Table

SPLITS = ("train", "validation", "test")


def load_splits(task: TaskSpec, kind: LabelKind, *, seed: int) -> Splits:
    """Read, check and split the data of `task`; the same for every trial of a study.

    Where the data has no validation or test split, one is made from train: rows are grouped by text (white space
    aside) so that copies of one text stay together, groups are drawn at random in proportion to the classes, and a
    text that also stands in a given split stays in train. The test rows are drawn first, so that they do not depend
    on whether a validation split is given. A hub test split without labels (GLUE hides them as -1) counts as absent.
    `max_train_rows` and `max_validation_rows` keep a sample in proportion to the classes, afterwards.

    Rows whose text cells are all empty are dropped, with a warning; one empty cell of two is an empty string. Images
    are copies of one another when their files are, byte for byte.

    Args:
        task: Says where the rows are and which columns are meant.
        kind: What the label column holds.
        seed: Of the drawing; the same seed gives the same splits.

    Raises:
        DataError: A missing file or column, an empty or hidden label, a label that train does not have, one class
            only, an empty split, a fraction outside (0, 1), an image file that cannot be read.
    """
    _check_fractions(task.data)
    tables = read_sources(task.data, images=task.image is not None)
    if kind is not LabelKind.NONE and _labels_hidden(tables.get("test"), task):
        del tables["test"]
    given = {name: _read_split(name, table, task, kind) for name, table in tables.items()}
    named = kind in (LabelKind.CLASS, LabelKind.TAGS, LabelKind.CHOICE)
    classes = find_classes(given["train"], tables["train"], task, kind) if named else ()
    stratify = kind in (LabelKind.CLASS, LabelKind.CHOICE)
    for split in given.values():
        check_labels(split, classes, kind)
    splits = _complete(given, task.data, stratify=stratify, seed=seed)
    for name in SPLITS:
        if not len(splits[name]):
            raise DataError(
                f"task.data: the {name} split is empty (made from {splits[name].place})",
                hint="give more rows, or a file for that split",
            )
    limits = {"train": task.data.max_train_rows, "validation": task.data.max_validation_rows}
    for name, limit in limits.items():
        if limit is not None:
            splits[name] = _sample(splits[name], limit, stratify=stratify, seed=seed)
    return Splits(train=splits["train"], validation=splits["validation"], test=splits["test"], classes=classes)


def _check_fractions(spec: DataSpec) -> None:
    for name in ("validation_fraction", "test_fraction"):
        value = getattr(spec, name)
        if not 0.0 < value < 1.0:
            raise DataError(f"task.data.{name}: got {value}; it must be above 0 and below 1")
    for name in ("max_train_rows", "max_validation_rows"):
        value = getattr(spec, name)
        if value is not None and value < 1:
            raise DataError(f"task.data.{name}: got {value}; it must be 1 or more", hint="leave it out to use all rows")
    if spec.validation_fraction + spec.test_fraction >= 1.0:
        raise DataError(
            f"task.data: validation_fraction {spec.validation_fraction} and test_fraction {spec.test_fraction} "
            "leave nothing to train on; together they must be below 1"
        )


def _labels_hidden(table: Table | None, task: TaskSpec) -> bool:
    """True for a hub test split that has no labels."""
    if table is None or task.data.hub is None or task.data.test is not None or task.label is None:
        return False
    return all(value is None or value == -1 for value in table.columns.get(task.label, ()))


def _read_split(name: str, table: Table, task: TaskSpec, kind: LabelKind) -> Split:
    images = () if task.image is None else read_pictures(table, task.image)
    texts = [(digest,) for digest in in_threads(Picture.digest, images)] if images else read_texts(table, task, kind)
    labels = read_labels(table, task, kind, texts) if kind is not LabelKind.NONE else []
    kept = [index for index, cells in enumerate(texts) if any(cell.strip() for cell in cells)]
    if len(kept) < len(texts):
        first = min(set(range(len(texts))) - set(kept)) + 1
        message = (
            f"{table.place}: {len(texts) - len(kept)} rows without any text are left out (the first is row {first})"
        )
        warnings.warn(message, stacklevel=2)
    split = Split(
        name=name,
        place=table.place,
        rows=tuple(range(1, len(texts) + 1)),
        texts=tuple(texts),
        labels=tuple(labels),
        images=images,
    )
    if not kept:
        hint = f"the file needs at least one row with {'text' if task.image is None else 'an image'}"
        raise DataError(f"{table.place}: the {name} split is empty", hint=hint)
    return split.take(kept)


def _complete(given: Mapping[str, Split], spec: DataSpec, *, stratify: bool, seed: int) -> dict[str, Split]:
    """`given` with the splits it lacks made from train."""
    train = given["train"]
    fractions = {"test": spec.test_fraction, "validation": spec.validation_fraction}
    missing = {name: fraction for name, fraction in fractions.items() if name not in given}
    if not missing:
        return dict(given)
    keys = [text_key(cells) for cells in train.texts]
    fixed = {text_key(cells) for name, split in given.items() if name != "train" for cells in split.texts}
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        if key not in fixed:
            groups.setdefault(key, []).append(index)
    members = list(groups.values())
    strata = [train.labels[rows[0]] if stratify else "" for rows in members]
    drawn = _draw(strata, list(missing.values()), seed=seed)
    made = {
        name: replace(train.take(sorted(row for group in picked for row in members[group])), name=name)
        for name, picked in zip(missing, drawn, strict=True)
    }
    taken = {row for picked in drawn for group in picked for row in members[group]}
    return dict(given) | made | {"train": train.take(index for index in range(len(train)) if index not in taken)}


def text_key(cells: Sequence[str]) -> str:
    """What makes two rows copies of one text: their cells, white space aside."""
    return "\x1f".join(" ".join(cell.split()) for cell in cells)


def _draw(strata: Sequence[str], fractions: Sequence[float], *, seed: int) -> list[list[int]]:
    """Disjoint random subsets of the items, each a fraction of all, in proportion to `strata`.

    One item of every stratum is always left over.
    """
    generator = np.random.default_rng([seed, _tag("splits")])
    members: dict[str, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    shuffled = {name: [members[name][i] for i in generator.permutation(len(members[name]))] for name in sorted(members)}
    drawn: list[list[int]] = []
    for fraction in fractions:
        wanted = max(1, round(fraction * len(strata)))
        sizes = _apportion({name: len(members[name]) for name in shuffled}, wanted)
        picked: list[int] = []
        for name, items in shuffled.items():
            size = min(sizes[name], len(items) - 1)
            picked += items[:size]
            shuffled[name] = items[size:]
        drawn.append(picked)
    return drawn


def _apportion(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """`wanted` seats among the strata by largest remainder; ties go to the name that comes first."""
    total = sum(sizes.values())
    exact = {name: wanted * size / total for name, size in sizes.items()}
    seats = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (seats[name] - exact[name], name))
    for name in by_remainder[: wanted - sum(seats.values())]:
        seats[name] += 1
    return seats


def _sample(split: Split, limit: int, *, stratify: bool, seed: int) -> Split:
    """At most `limit` rows of `split`, in file order, in proportion to the labels when `stratify`."""
    if len(split) <= limit:
        return split
    generator = np.random.default_rng([seed, _tag(split.name)])
    members: dict[str, list[int]] = {}
    for index in range(len(split)):
        members.setdefault(split.labels[index] if stratify else "", []).append(index)
    seats = _apportion({name: len(members[name]) for name in sorted(members)}, limit)
    chosen: list[int] = []
    for name in sorted(members):
        order = generator.permutation(len(members[name]))[: seats[name]]
        chosen += [members[name][index] for index in order]
    return split.take(sorted(chosen))


def _tag(name: str) -> int:
    """A number that keeps the random streams of different purposes apart."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
