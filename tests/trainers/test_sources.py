import sys
from types import ModuleType

import pytest

from autopeft.errors import DataError, MissingExtraError
from autopeft.trainers.job import DataSpec
from autopeft.trainers.sources import read_sources


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
