"""The rows of a task as they were read, checked, in three splits."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from autopeft.trainers.pictures import Picture


class LabelKind(StrEnum):
    """What a label is."""

    CLASS = "class"
    NUMBER = "number"
    NONE = "none"
    TAGS = "tags"
    """A class for every word; words and tags of a row are kept as one string each, `UNIT` between them."""
    CHOICE = "choice"
    """Which of the row's choices is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The rows of one split; `rows`, `texts`, `labels` and `images` are aligned."""

    name: str
    place: str
    """The file or hub split the rows were read from."""
    rows: tuple[int, ...]
    """Row numbers in that source, from 1."""
    texts: tuple[tuple[str, ...], ...]
    """One string a text column; of an image the digest of its bytes, which copies have in common."""
    labels: tuple[str, ...]
    """Labels as written, whole numbers without a fraction (`1.0` is `1`); empty when the task has none."""
    images: tuple[Picture, ...] = ()
    """One a row; empty where the task reads texts."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Iterable[int]) -> "Split":
        """The rows at `indices`, in that order."""
        chosen = tuple(indices)
        labels = tuple(self.labels[index] for index in chosen) if self.labels else ()
        images = tuple(self.images[index] for index in chosen) if self.images else ()
        return replace(
            self,
            rows=tuple(self.rows[index] for index in chosen),
            texts=tuple(self.texts[index] for index in chosen),
            labels=labels,
            images=images,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """A task's data, checked: no split is empty, every label of validation and test is in train."""

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    """Labels of train, numbers by value, else by name (a hub data set's own order where it has one); empty when
    labels are no classes."""

    def split(self, name: str) -> Split:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]
