"""What is known of a scored split: metrics, rows, intervals."""

from pathlib import Path

import numpy as np
import pytest

from autopeft.spaces.configuration import Configuration
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.scores import Scores
from autopeft.trainers.text_tasks import CLASSES, TOKENS
from tests.trainers.support import classification, language, trainer

NOTHING = Configuration(methods=(), training=())


def test_accuracy_of_rows_has_wilsons_interval_and_other_metrics_the_bootstraps(tmp_path: Path) -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    scores = Scores(
        task=CLASSES,
        metrics=("accuracy", "f1"),
        statistics=logits,
        targets=np.array([0.0, 1.0, 1.0, 1.0]),
        rows=np.arange(4),
        extra={"seen": 1.0},
    )
    assert scores.values["accuracy"] == 0.75
    assert scores.values["seen"] == 1.0
    found = scores.intervals()
    assert {name: interval.method for name, interval in found.items()} == {"accuracy": "wilson", "f1": "bootstrap"}
    assert found["f1"].low <= scores.values["f1"] <= found["f1"].high
    assert scores.largest_difference(scores) == 0.0


def test_tokens_of_one_row_are_drawn_together() -> None:
    """Two rows of 100 equal tokens: drawn apart, the mean would hardly vary; drawn as rows it is 0, 0.5 or 1."""
    statistics = np.array([[0.1, 1.0]] * 100 + [[2.0, 0.0]] * 100)
    scores = Scores(
        task=TOKENS,
        metrics=("accuracy", "perplexity"),
        statistics=statistics,
        targets=np.zeros(200),
        rows=np.repeat([1, 0], 100),
    )
    assert scores.n_rows == 2
    interval = scores.interval("accuracy")
    assert (interval.low, interval.high, interval.method, interval.rows) == (0.0, 1.0, "bootstrap", 2)
    assert scores.interval("perplexity").high == pytest.approx(np.exp(2.0))


def test_an_infinite_perplexity_of_a_draw_is_infinite() -> None:
    scores = Scores(
        task=TOKENS,
        metrics=("perplexity",),
        statistics=np.array([[0.1, 1.0], [900.0, 0.0]]),
        targets=np.zeros(2),
        rows=np.arange(2),
    )
    interval = scores.interval("perplexity")
    assert interval.high == np.inf
    assert interval.to_json()["high"] is None


@pytest.mark.parametrize("kind", ["classification", "language"])
def test_a_trainer_scores_every_row_of_a_split(kind: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, classification(tmp_path)) if kind == "classification" else None
    made = made or trainer(tmp_path, language(tmp_path), model="gpt2")
    scores = made.score(AdapterSet(NOTHING, {}), "validation")
    split = made.tokens("validation")
    assert sorted(set(scores.rows.tolist())) == list(range(len(split)))
    assert scores.values == made.evaluate(AdapterSet(NOTHING, {}), "validation")
    if kind == "language":
        per_row = np.bincount(scores.rows)
        assert per_row.tolist() == (split.lengths - split.starts).tolist()
