"""Texts in, answers out, for every kind of task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from autopeft.errors import DataError
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import LoadedModel, load_model
from autopeft.trainers.predict import Predictor
from tests.models import save_model

TEXTS = ["baran cesel ditin", "nuzum", "movor lisel baran cesel"]


def load(folder: Path, kind: str, *, name: str = "bert", n_labels: int | None = 2) -> LoadedModel:
    base = save_model(name, folder / "base", language_model=kind in ("causal-lm", "seq2seq"))
    return load_model(ModelSpec(name=str(base)), kind=kind, n_labels=n_labels)


def predictor(loaded: LoadedModel, *, metric: str, columns: Sequence[str], labels: Sequence[str] = ()) -> Predictor:
    return Predictor(
        loaded.model,
        loaded.tokenizer,
        kind=loaded.kind,
        metric=metric,
        columns=columns,
        labels=labels,
        max_length=8,
        new_tokens=5,
    )


def logits(loaded: LoadedModel, *texts: str) -> torch.Tensor:
    given = loaded.tokenizer(*texts, return_tensors="pt", truncation=True, max_length=8)
    with torch.inference_mode():
        return loaded.model(**given).logits[0]


def test_classes_get_their_name_and_probability_in_the_order_of_the_rows(tmp_path: Path) -> None:
    loaded = load(tmp_path, "text-classification")
    answers = predictor(loaded, metric="accuracy", columns=["text"], labels=["low", "high"]).predict(
        [[text] for text in TEXTS]
    )
    for text, answer in zip(TEXTS, answers, strict=True):
        shares = logits(loaded, text).softmax(-1)
        assert answer["label"] == ["low", "high"][int(shares.argmax())]
        assert answer["score"] == pytest.approx(float(shares.max()), abs=1e-6)


def test_pairs_are_read_together_and_long_texts_are_cut(tmp_path: Path) -> None:
    loaded = load(tmp_path, "text-classification")
    made = predictor(loaded, metric="accuracy", columns=["premise", "claim"], labels=["a", "b"])
    long = " ".join(TEXTS * 4)
    (answer,) = made.predict([[long, "nuzum"]])
    assert answer["score"] == pytest.approx(float(logits(loaded, long, "nuzum").softmax(-1).max()), abs=1e-6)
    assert made.predict([]) == []
    with pytest.raises(DataError, match=r"row 1: 1 texts; 2 are needed.*give premise, claim"):
        made.predict([["alone"]])


def test_numbers_come_as_they_are(tmp_path: Path) -> None:
    loaded = load(tmp_path, "text-classification", n_labels=1)
    (answer,) = predictor(loaded, metric="pearson", columns=["text"]).predict([[TEXTS[0]]])
    assert answer == {"value": pytest.approx(float(logits(loaded, TEXTS[0])[0]), abs=1e-6)}


def test_every_word_gets_a_tag_and_words_beyond_the_cut_none(tmp_path: Path) -> None:
    loaded = load(tmp_path, "token-classification", n_labels=3)
    made = predictor(loaded, metric="f1", columns=["words"], labels=["O", "B", "I"])
    short, long = made.predict([[TEXTS[0].split()], [" ".join(TEXTS * 2)]])
    expected = logits(loaded, TEXTS[0])[1:-1].argmax(-1)
    assert short["labels"] == [["O", "B", "I"][index] for index in expected.tolist()]
    found = long["labels"]
    assert isinstance(found, list)
    assert len(found) == 16
    assert found[6:] == [""] * 10
    assert all(found[:6])


def test_choices_may_be_a_list_or_a_column_each(tmp_path: Path) -> None:
    loaded = load(tmp_path, "multiple-choice", n_labels=1)
    as_list = predictor(loaded, metric="accuracy", columns=["question", "choices"], labels=["0", "1"])
    apart = predictor(loaded, metric="accuracy", columns=["question", "first", "second"], labels=["0", "1"])
    (one,), (two,) = as_list.predict([["baran", TEXTS[:2]]]), apart.predict([["baran", *TEXTS[:2]]])
    assert one == two
    scores = [float(logits_of_choice(loaded, "baran", text)) for text in TEXTS[:2]]
    assert one["label"] == str(int(np.argmax(scores)))


def logits_of_choice(loaded: LoadedModel, question: str, choice: str) -> torch.Tensor:
    given = loaded.tokenizer(question, choice, return_tensors="pt")
    with torch.inference_mode():
        return loaded.model(**{name: tensor[None] for name, tensor in given.items()}).logits[0, 0]


def test_a_language_model_continues_greedily(tmp_path: Path) -> None:
    loaded = load(tmp_path, "causal-lm", name="llama", n_labels=None)
    made = predictor(loaded, metric="perplexity", columns=["prompt", "completion"])
    assert made.columns == ("prompt",)
    (answer,) = made.predict([["baran cesel"]])
    ids = torch.tensor([[1, *loaded.tokenizer("baran cesel", add_special_tokens=False)["input_ids"]]])
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < 5 and 2 not in written:
            seen = torch.cat([ids, torch.tensor([written], dtype=torch.long)], dim=1)
            written.append(int(loaded.model(seen).logits[0, -1].argmax()))
    assert answer["text"] == loaded.tokenizer.decode(written, skip_special_tokens=True)
