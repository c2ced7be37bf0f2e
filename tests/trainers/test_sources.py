import sys
from pathlib import Path
from types import ModuleType

import datasets
import pytest

from autopeft.errors import DataError, MissingExtraError
from autopeft.trainers.job import DataSpec
from autopeft.trainers.pictures import Picture, read_pictures
from autopeft.trainers.sources import read_image_folder, read_sources
from tests.images import rows_of, write_folder, write_table


def test_no_source_at_all_is_refused() -> None:
    with pytest.raises(DataError, match=r"task\.data: no train file \(give task\.data\.train a file"):
        read_sources(DataSpec())


class FakeFeature:
    names = ("entailment", "not_entailment")


class FakeRows:
    column_names = ("sentence1", "label")
    features = {"sentence1": object(), "label": FakeFeature()}

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __getitem__(self, column: str) -> list[object]:
        return list(self.labels) if column == "label" else [f"text {i}" for i in range(len(self.labels))]


def fake_datasets(monkeypatch: pytest.MonkeyPatch, result: object) -> list[tuple[object, ...]]:
    """Put a stand-in for `datasets` in place; the calls of `load_dataset` are noted in the list."""
    calls: list[tuple[object, ...]] = []
    module, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")

    class DatasetsError(Exception):
        pass

    def load_dataset(hub: str, name: str | None, *, revision: str | None) -> object:
        calls.append((hub, name, revision))
        if isinstance(result, Exception):
            raise result
        return result

    exceptions.DatasetsError = DatasetsError  # type: ignore[attr-defined]
    module.load_dataset, module.exceptions = load_dataset, exceptions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
    return calls


def test_a_hub_data_set_gives_its_splits_and_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_datasets(monkeypatch, {"train": FakeRows([0, 1]), "validation_matched": FakeRows([1])})
    tables = read_sources(DataSpec(hub="nyu-mll/glue", name="mnli", revision="abc"))
    assert calls == [("nyu-mll/glue", "mnli", "abc")]
    assert set(tables) == {"train", "validation"}
    assert tables["validation"].place == "nyu-mll/glue [validation_matched]"
    assert tables["train"].class_names == {"label": ["entailment", "not_entailment"]}


def test_a_hub_split_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, {"train": FakeRows([0, 1]), "dev": FakeRows([0])})
    with pytest.raises(DataError, match=r"task\.data\.test: 'x' has no split 'testing'; it has train, dev"):
        read_sources(DataSpec(hub="x", test="testing"))
    fake_datasets(monkeypatch, {"all": FakeRows([0])})
    with pytest.raises(DataError, match="has no split 'train'; it has all"):
        read_sources(DataSpec(hub="x"))


def test_a_hub_data_set_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, ConnectionError("no network\nlong trace"))
    with pytest.raises(DataError, match=r"cannot load 'x' \(name: None\): no network \(check the id"):
        read_sources(DataSpec(hub="x"))


def test_the_hub_without_datasets_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="pip install datasets"):
        read_sources(DataSpec(hub="x"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))


def test_class_folders_are_a_table_of_images_and_labels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "odd [1]" / "train", 4)
    (folder / "disc" / "notes.txt").write_text("no image")
    (folder / "square" / "test_9.png").write_bytes((folder / "square" / "001.png").read_bytes())
    table = read_image_folder(folder)
    assert set(table.columns) == {"image", "label"}
    assert table.class_names == {"label": ["disc", "square"]}
    assert list(table.columns["label"]) == [0, 0, 1, 1, 1], "a file's name says nothing of a split"
    assert table.place == str(folder)
    assert read_pictures(table, "image")[2].data() == (folder / "square" / "001.png").read_bytes()
    assert capfd.readouterr().err == ""


def test_images_that_come_or_go_are_seen(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train", 4)
    assert len(read_image_folder(folder)) == 4
    (folder / "disc" / "000.png").unlink()
    assert len(read_image_folder(folder)) == 3


def test_metadata_beside_the_images_gives_the_columns(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train", 4)
    lines = [f"{path},{label.upper()},{index}" for index, (path, label) in enumerate(rows_of(folder, below=folder))]
    (folder / "metadata.csv").write_text("\n".join(["file_name,shape,age", *lines]) + "\n")
    table = read_image_folder(folder)
    assert set(table.columns) == {"image", "shape", "age"}
    assert table.columns["shape"] == ["DISC", "SQUARE", "DISC", "SQUARE"]


def test_a_folder_stands_for_a_file_where_images_are_read(tmp_path: Path) -> None:
    spec = DataSpec(train=str(write_folder(tmp_path / "a", 2)), test=str(write_folder(tmp_path / "b", 2, seed=1)))
    tables = read_sources(spec, images=True)
    assert {name: len(table) for name, table in tables.items()} == {"train": 2, "test": 2}
    with pytest.raises(DataError, match="a: is a folder; a data file is needed"):
        read_sources(spec)


def test_a_folder_of_splits_is_refused_with_what_to_write(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_folder(tmp_path / split, 2)
    expected = r"holds splits \(train, val, test\), not classes .*data: {train: .*train, validation: .*val, test: "
    with pytest.raises(DataError, match=expected):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("layout", ["none", "one class", "no class", "depths"])
def test_a_folder_that_gives_no_classes_is_refused(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    write_folder(folder, {"none": 0, "one class": 1}.get(layout, 2))
    folder.mkdir(exist_ok=True)
    if layout == "none":
        (folder / "notes.txt").write_text("nothing to see")
    if layout == "no class":
        for name in ("disc/000.png", "square/001.png"):
            (folder / name).rename(folder / Path(name).name)
    if layout == "depths":
        (folder / "square" / "more").mkdir()
        (folder / "square" / "001.png").rename(folder / "square" / "more" / "001.png")
    message = "no images could be read" if layout == "none" else "every image must be in the folder of its class"
    with pytest.raises(DataError, match=message):
        read_image_folder(folder)


def test_images_of_a_data_set_stay_undecoded_until_they_are_asked_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 4)
    rows = [
        {"picture": {"path": str(folder / path), "bytes": None}, "kind": i % 2}
        for i, (path, _) in enumerate(rows_of(folder, below=folder))
    ]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["disc", "square"])})
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "hub" / "train.parquet")
    table = read_sources(DataSpec(hub=str(tmp_path / "hub")), images=True)["train"]
    assert table.class_names == {"kind": ["disc", "square"]}
    assert not isinstance(table.columns["picture"], list)
    digests = [picture.digest() for picture in read_pictures(table, "picture")]
    listed = read_sources(
        DataSpec(train=write_table(tmp_path / "t.csv", rows_of(folder, below=tmp_path))), images=True
    )["train"]
    assert digests == [picture.digest() for picture in read_pictures(listed, "image")]
    assert isinstance(read_pictures(table, "picture")[0], Picture)


def test_folders_of_images_without_datasets_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "train", 2)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="a folder of images needs datasets"):
        read_image_folder(folder)
