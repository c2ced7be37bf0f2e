import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import DataError
from autopeft.trainers import data
from autopeft.trainers.data import LabelKind, Split, load_splits, text_key
from autopeft.trainers.job import DataSpec, TaskSpec
from tests.trainers.test_sources import FakeRows, fake_datasets


def write(file: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("text", "label")) -> str:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(file)


def task(spec: DataSpec, *, text: tuple[str, ...] = ("text",), metric: str = "accuracy") -> TaskSpec:
    return TaskSpec(kind="text-classification", data=spec, text=text, label="label", metric=metric)


def keys(split: Split) -> set[str]:
    return {text_key(cells) for cells in split.texts}


def rows_of(n: int, n_classes: int = 2) -> list[tuple[str, int]]:
    return [(f"text number {i}", i % n_classes) for i in range(n)]


def test_given_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    spec = DataSpec(
        train=write(tmp_path / "train.csv", rows_of(6)),
        validation=write(tmp_path / "validation.csv", [("v", 1)]),
        test=write(tmp_path / "test.csv", [("t", 0)]),
    )
    splits = load_splits(task(spec), LabelKind.CLASS, seed=0)
    assert (len(splits.train), splits.validation.texts, splits.test.texts) == (6, (("v",),), (("t",),))
    assert splits.classes == ("0", "1")


def test_made_splits_are_disjoint_stratified_and_repeatable(tmp_path: Path) -> None:
    spec = DataSpec(train=write(tmp_path / "train.csv", rows_of(200, 4)))
    splits = load_splits(task(spec), LabelKind.CLASS, seed=3)
    assert [len(splits.split(name)) for name in data.SPLITS] == [160, 20, 20]
    assert set(Counter(splits.validation.labels).values()) == {5}
    every = [row for name in data.SPLITS for row in splits.split(name).rows]
    assert sorted(every) == list(range(1, 201))
    assert load_splits(task(spec), LabelKind.CLASS, seed=3) == splits
    assert load_splits(task(spec), LabelKind.CLASS, seed=4) != splits


def test_the_made_test_split_does_not_depend_on_the_validation_file(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", rows_of(100))
    validation = write(tmp_path / "validation.csv", [("another text", 0)])
    alone = load_splits(task(DataSpec(train=train)), LabelKind.CLASS, seed=0)
    beside = load_splits(task(DataSpec(train=train, validation=validation)), LabelKind.CLASS, seed=0)
    assert alone.test == beside.test


def test_a_text_of_a_given_split_is_never_drawn_into_the_other(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", rows_of(40))
    validation = write(tmp_path / "validation.csv", rows_of(20))
    splits = load_splits(task(DataSpec(train=train, validation=validation, test_fraction=0.5)), LabelKind.CLASS, seed=0)
    assert not keys(splits.test) & keys(splits.validation)


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.integers(0, 12), min_size=30, max_size=60),
    seed=st.integers(0, 100),
    fractions=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
)
def test_copies_of_a_text_stay_in_one_split(
    tmp_path_factory: pytest.TempPathFactory, texts: list[int], seed: int, fractions: tuple[float, float]
) -> None:
    folder = tmp_path_factory.mktemp("data")
    rows = [(f"text  {t}" if i % 2 else f"text {t}", i % 2) for i, t in enumerate([*range(12), *texts])]
    spec = DataSpec(train=write(folder / "t.csv", rows), validation_fraction=fractions[0], test_fraction=fractions[1])
    splits = load_splits(task(spec), LabelKind.CLASS, seed=seed)
    parts = [keys(splits.split(name)) for name in data.SPLITS]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert sum(len(splits.split(name)) for name in data.SPLITS) == len(rows)


def test_limits_keep_a_sample_in_proportion(tmp_path: Path) -> None:
    rows = [(f"text {i}", "rare" if i % 10 == 0 else "common") for i in range(500)]
    spec = DataSpec(train=write(tmp_path / "t.csv", rows), max_train_rows=50, max_validation_rows=20)
    splits = load_splits(task(spec), LabelKind.CLASS, seed=0)
    assert Counter(splits.train.labels) == {"common": 45, "rare": 5}
    assert len(splits.validation) == 20
    assert list(splits.train.rows) == sorted(splits.train.rows)
    assert splits == load_splits(task(spec), LabelKind.CLASS, seed=0)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "9.0"], ("9", "10")),
        ([" yes", "no", "no"], ("no", "yes")),
        (["-1", "1", "1"], ("-1", "1")),
        (["2nd", "10th", "10th"], ("10th", "2nd")),
    ],
)
def test_classes_are_ordered_by_value_then_by_name(tmp_path: Path, labels: list[str], classes: tuple[str, ...]) -> None:
    train = write(tmp_path / "t.csv", [(f"a{i}", label) for i, label in enumerate(labels * 3)])
    one = write(tmp_path / "v.csv", [("b", labels[0])])
    splits = load_splits(task(DataSpec(train=train, validation=one, test=one)), LabelKind.CLASS, seed=0)
    assert splits.classes == classes


def test_hub_labels_are_spelled_by_name_in_the_hub_s_order(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, {"train": FakeRows([1, 0] * 10), "validation": FakeRows([0, 1]), "test": FakeRows([-1])})
    spec = task(DataSpec(hub="nyu-mll/glue"), text=("sentence1",))
    splits = load_splits(spec, LabelKind.CLASS, seed=0)
    assert splits.classes == ("entailment", "not_entailment")
    assert splits.test.place == "nyu-mll/glue [train]", "hidden test labels: made from train"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 0), ("b", 0)], "every row has the label '0'; two classes are needed"),
        ([("a", 0), ("b", "")], r"row 2: the label \('label'\) is empty"),
        ([("a", 0.5), ("b", 1)], "label '0.5' is a fraction, not a class .use metric pearson"),
        ([(f"a{i}", f"l{i}") for i in range(5)], "every one of the 5 rows has a label of its own"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, rows: list[tuple[str, object]], message: str) -> None:
    spec = DataSpec(train=write(tmp_path / "train.csv", rows))
    with pytest.raises(DataError, match=message):
        load_splits(task(spec), LabelKind.CLASS, seed=0)


def test_a_label_that_train_lacks_names_file_row_value_and_labels(tmp_path: Path) -> None:
    spec = DataSpec(
        train=write(tmp_path / "train.csv", rows_of(10)),
        validation=write(tmp_path / "dev.csv", [("x", 0), ("y", "maybe")]),
    )
    with pytest.raises(DataError, match=r"dev\.csv row 2: label 'maybe' is not in train; train has '0', '1'"):
        load_splits(task(spec), LabelKind.CLASS, seed=0)


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    spec = DataSpec(train=write(tmp_path / "train.csv", [("a", 0.5), ("b", "high"), ("c", "nan")]))
    with pytest.raises(DataError, match="row 2: label 'high' is not a finite number"):
        load_splits(task(spec), LabelKind.NUMBER, seed=0)


def test_rows_without_text_are_left_out_with_a_warning(tmp_path: Path) -> None:
    rows = [("a", "", 0), ("", " ", 1), ("", "b", 1), ("c", "d", 0)]
    file = write(tmp_path / "t.csv", rows, header=("text", "pair", "label"))
    spec = task(DataSpec(train=file, validation=file, test=file), text=("text", "pair"))
    with pytest.warns(UserWarning, match=r"t\.csv: 1 rows without any text are left out \(the first is row 2\)"):
        splits = load_splits(spec, LabelKind.CLASS, seed=0)
    assert splits.train.rows == (1, 3, 4)
    assert splits.train.texts[1] == ("", "b")


def test_empty_splits_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", rows_of(10))
    with pytest.raises(DataError, match=r"dev\.csv: the validation split is empty"):
        load_splits(task(DataSpec(train=train, validation=write(tmp_path / "dev.csv", []))), LabelKind.CLASS, seed=0)
    few = write(tmp_path / "few.csv", [("a", 0), ("b", 1)])
    with pytest.raises(DataError, match=r"task\.data: the validation split is empty"):
        load_splits(task(DataSpec(train=few)), LabelKind.CLASS, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_fraction": 0.0}, r"task\.data\.test_fraction: got 0\.0; it must be above 0 and below 1"),
        ({"validation_fraction": 1.5}, r"validation_fraction: got 1\.5"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"max_train_rows": 0}, r"max_train_rows: got 0; it must be 1 or more"),
    ],
)
def test_impossible_shares_are_refused(tmp_path: Path, fields: dict[str, float], message: str) -> None:
    spec = DataSpec(train=write(tmp_path / "t.csv", rows_of(4)), **fields)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_splits(task(spec), LabelKind.CLASS, seed=0)


def test_a_column_of_lists_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": ["a"], "label": 1}\n')
    with pytest.raises(DataError, match="row 1: column 'text' holds a list; text is needed"):
        load_splits(task(DataSpec(train=str(file))), LabelKind.CLASS, seed=0)


def test_a_task_without_its_label_column_is_refused(tmp_path: Path) -> None:
    spec = TaskSpec(
        kind="text-classification",
        data=DataSpec(train=write(tmp_path / "t.csv", rows_of(4))),
        text=("text",),
        label=None,
        metric="accuracy",
    )
    with pytest.raises(DataError, match=r"task\.label: got nothing"):
        load_splits(spec, LabelKind.CLASS, seed=0)
