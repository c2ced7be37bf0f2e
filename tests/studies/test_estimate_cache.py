"""A second question about a model is answered from what the first found, and from nothing else."""

import json
from pathlib import Path

import pytest

from autopeft.studies.estimate import Conditions, Estimate, estimate
from tests.models import MODELS


def never() -> None:
    raise AssertionError("something heavy was asked for")


class Asked:
    """A model, an adapter and a cache."""

    def __init__(self, folder: Path) -> None:
        MODELS["llama"].config().save_pretrained(folder / "model")
        self.model, self.file, self.cache = folder / "model", folder / "c.json", folder / "cache"
        self.write(4)

    def write(self, rank: int) -> None:
        self.file.write_text(json.dumps({"lora": {"rank": rank}}))

    def ask(self, *, heavy: bool, length: int = 16, fit: str | None = None) -> Estimate:
        conditions = Conditions(batch_size=2, sequence_length=length)
        prepare = (lambda: None) if heavy else never
        return estimate(str(self.model), self.file, conditions, fit=fit, prepare=prepare, cache=self.cache)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def test_the_same_question_loads_nothing_and_has_the_same_answer(asked: Asked) -> None:
    first = asked.ask(heavy=True, fit="1MB")
    assert asked.ask(heavy=False, fit="1MB") == first
    assert first == estimate(str(asked.model), asked.file, Conditions(batch_size=2, sequence_length=16), fit="1MB")


def test_another_adapter_is_counted_without_the_model_and_traced_anew(asked: Asked) -> None:
    asked.ask(heavy=True)
    asked.write(8)
    with pytest.raises(AssertionError, match="something heavy"):
        asked.ask(heavy=False)
    counts: list[int] = []
    with pytest.raises(AssertionError, match="something heavy"):
        estimate(
            str(asked.model),
            asked.file,
            Conditions(sequence_length=16),
            counted=lambda count: counts.append(count.parameters),
            prepare=never,
            cache=asked.cache,
        )
    assert counts == [asked.ask(heavy=True).parameters]


@pytest.mark.parametrize("change", ["length", "configuration", "sources"])
def test_whatever_the_answer_follows_from_makes_another_question(
    change: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.ask(heavy=True)
    if change == "configuration":
        config = MODELS["llama"].config()
        config.intermediate_size *= 2
        config.save_pretrained(asked.model)
    elif change == "sources":
        monkeypatch.setattr("autopeft.studies.estimate_cache._versions", lambda: ["another"])
    with pytest.raises(AssertionError, match="something heavy"):
        asked.ask(heavy=False, length=17 if change == "length" else 16)


@pytest.mark.parametrize("damage", ["", "{", '{"checksum": "", "answer": {}}', "[]", '{"checksum": 1}', "\x00"])
def test_damaged_files_are_made_again(damage: str, asked: Asked) -> None:
    first = asked.ask(heavy=True)
    for file in asked.cache.iterdir():
        file.write_text(damage)
    assert asked.ask(heavy=True) == first
    assert asked.ask(heavy=False) == first


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(asked: Asked) -> None:
    asked.cache.write_text("a file")
    assert asked.ask(heavy=True) == asked.ask(heavy=True)
    assert asked.cache.read_text() == "a file"


def test_half_written_files_are_never_seen(asked: Asked) -> None:
    asked.ask(heavy=True)
    assert {file.suffix for file in asked.cache.iterdir()} == {".json"}
