"""What the trained tables are of: spaces, training settings and tasks."""

import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from common import ROOT

from autopeft.trainers.job import DataSpec, TaskSpec, TrainingSettings

DATA = ROOT.parent / "shared" / "data"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Rows to train on, and how they are judged."""

    metric: str = "accuracy"
    train_rows: int
    text: str = "text"
    label: str = "label"
    asked_for: bool = False
    """Trained only if it is named."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Trainings that belong into one table."""

    space: Mapping[str, object]
    settings: TrainingSettings
    validation_rows: int
    tasks: Mapping[str, Task]

    @property
    def usual(self) -> list[str]:
        """The tasks that are trained unless some are named."""
        return [name for name, task in self.tasks.items() if not task.asked_for]

    def spec(self, task: str, folder: Path) -> TaskSpec:
        """What is trained, its files being in `folder`."""
        one = self.tasks[task]
        data = DataSpec(
            train=str(folder / "train.csv"),
            validation=str(folder / "validation.csv"),
            max_train_rows=one.train_rows,
            max_validation_rows=self.validation_rows,
        )
        return TaskSpec(kind="text-classification", data=data, text=(one.text,), label=one.label, metric=one.metric)


PLANS: Mapping[str, Plan] = {
    "minilm": Plan(
        space={
            "layers": "subset",
            "serial_adapter": {"bottleneck": "choice(0, 4, 16, 64)"},
            "parallel_adapter": {"bottleneck": "choice(0, 4, 16, 64)"},
            "lora": {"rank": "choice(0, 2, 4, 8, 16)", "targets": "query-value"},
            "learning_rate": "log(1e-3, 2e-2)",
        },
        settings=TrainingSettings(epochs=3, batch_size=16, max_length=32, precision="auto"),
        validation_rows=256,
        tasks={
            "trec": Task(train_rows=400),
            "sst2": Task(train_rows=256),
            "mr": Task(train_rows=256),
            "cola": Task(train_rows=400, metric="matthews", asked_for=True),
        },
    ),
    "docstrings": Plan(
        space={
            "serial_adapter": {"bottleneck": "choice(0, 8, 32)"},
            "lora": {"rank": "per_group(3, choice(0, 2, 8, 32))", "targets": "subset(query, value, mlp_up)"},
            "learning_rate": "log(1e-3, 1e-2)",
        },
        settings=TrainingSettings(epochs=9, batch_size=16, max_length=16, precision="float32"),
        validation_rows=200,
        tasks={"docstrings": Task(train_rows=128, text="docstring", label="package")},
    ),
}
"""By the table's name.

Of four configurations that were tried on CoLA with 400 rows and three epochs none passed a Matthews correlation of
0.03, so that there would be little to search. `docstrings` has the quickstart's space and task; nine epochs leave room
for rungs. It trains in float32 wherever it is made.
"""


def data_folder(task: str, folder: Path) -> Path:
    """Where train.csv and validation.csv of `task` are; docstrings are collected into `folder`."""
    if task != "docstrings":
        return DATA / task
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"))["make_data"](folder / task)
    return folder / task
