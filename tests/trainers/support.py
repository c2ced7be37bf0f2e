"""Small tasks and trainers on the tiny models."""

import random
from pathlib import Path

from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings
from autopeft.trainers.trainer import Trainer
from tests.models import WORDS, save_model
from tests.trainers.test_data import write

SETTINGS = TrainingSettings(
    epochs=2, batch_size=16, max_length=24, learning_rate=1e-2, precision="float32", warmup_ratio=0.1
)


def rows(n: int, *, seed: int) -> list[tuple[str, str]]:
    """Sentences whose label says which half of the vocabulary their words are from."""
    chance = random.Random(seed)
    out: list[tuple[str, str]] = []
    for index in range(n):
        words = chance.choices(WORDS[:25] if index % 2 else WORDS[25:], k=chance.randint(3, 12))
        out.append((" ".join(words), "yes" if index % 2 else "no"))
    return out


def classification(folder: Path, *, n: int = 120, metric: str = "accuracy") -> TaskSpec:
    """A task that a tiny model learns; its test split is made from train."""
    data = DataSpec(
        train=write(folder / "train.csv", rows(n, seed=0)),
        validation=write(folder / "validation.csv", rows(40, seed=1)),
    )
    return TaskSpec(kind="text-classification", data=data, text=("text",), label="label", metric=metric)


def numbers(folder: Path) -> TaskSpec:
    """Labels are numbers: how many words a sentence has."""
    made = [(text, len(text.split()) + 0.5) for text, _ in rows(120, seed=2)]
    data = DataSpec(train=write(folder / "numbers.csv", made))
    return TaskSpec(kind="text-classification", data=data, text=("text",), label="label", metric="pearson")


def language(folder: Path, *, text: tuple[str, ...] = ("text",)) -> TaskSpec:
    """Sentences in which every word is followed by the next one of the vocabulary."""
    chance = random.Random(3)
    starts = [chance.randrange(len(WORDS) - 9) for _ in range(120)]
    made = [(" ".join(WORDS[i : i + 3]), " ".join(WORDS[i + 3 : i + 8])) for i in starts]
    lines = [(f"{a} {b} {i % 7}", a, b) for i, (a, b) in enumerate(made)]
    data = DataSpec(train=write(folder / "lines.csv", lines, header=("text", "prompt", "completion")))
    return TaskSpec(kind="causal-lm", data=data, text=text, label=None, metric="perplexity")


def trainer(folder: Path, task: TaskSpec, *, model: str = "bert", settings: TrainingSettings = SETTINGS) -> Trainer:
    """A CPU trainer on a tiny model saved in `folder`; its cache is there too."""
    where = folder / f"{model}-{task.kind}"
    if not where.exists():
        save_model(model, where, language_model=task.kind == "causal-lm")
    spec = ModelSpec(name=str(where))
    return Trainer(spec, task, settings, device="cpu", cache=folder / "cache")
