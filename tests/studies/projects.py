"""A small project on disk: a tiny BERT, a learnable two-class task, a study file."""

import csv
import random
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.models import WORDS, save_model

HALF = len(WORDS) // 2


def sentence(chance: random.Random, label: str, *, n_words: int = 6) -> str:
    """Words drawn mostly from the label's half of the vocabulary."""
    own, other = (WORDS[:HALF], WORDS[HALF:]) if label == "low" else (WORDS[HALF:], WORDS[:HALF])
    return " ".join(chance.choice(own if chance.random() < 0.9 else other) for _ in range(n_words))


def write_rows(path: Path, n: int, *, seed: int) -> None:
    chance = random.Random(seed)
    rows = [(sentence(chance, label), label) for label in ("low", "high") * (n // 2)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def study_data(**changes: object) -> dict[str, object]:
    """A study file's content; `changes` go in by dotted path with `__` for the dot."""
    data: dict[str, object] = {
        "study": "tiny",
        "model": "model",
        "task": {
            "kind": "text-classification",
            "data": {"train": "train.csv", "validation": "validation.csv"},
            "text": "text",
            "label": "label",
            "metric": "accuracy",
        },
        "space": {"lora": {"rank": "choice(0, 2, 4)"}, "serial_adapter": {"bottleneck": "choice(0, 4)"}},
        "search": {"engine": "random", "trials": 2, "seed": 1},
        "training": {"epochs": 1, "batch_size": 16, "max_length": 16, "precision": "float32"},
        "resources": {"executor": "local"},
        "tracking": {"mlflow": None},
    }
    return put(data, changes)


def put(data: dict[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """`data` with `changes` put in, as `study_data` reads them; `...` takes a key out."""
    for key, value in changes.items():
        _put(data, key.split("__"), value)
    return data


def _put(data: dict[str, object], path: list[str], value: object) -> None:
    for step in path[:-1]:
        below = data.setdefault(step, {})
        assert isinstance(below, dict)
        data = below
    if value is ...:
        data.pop(path[-1])
    else:
        data[path[-1]] = value


def write_study(folder: Path, data: Mapping[str, object] | None = None, **changes: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(dict(data or study_data(**changes)), sort_keys=False), encoding="utf-8")
    return path


def make_project(folder: Path) -> Path:
    """Model and data in `folder`; returns it."""
    save_model("bert", folder / "model")
    write_rows(folder / "train.csv", 80, seed=0)
    write_rows(folder / "validation.csv", 40, seed=1)
    return folder
