"""A table of trained configurations as one compact file: who was trained, on what, and what every epoch measured."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from common import ROOT
from numpy.typing import NDArray

from autopeft.objectives.measurement import Measurement
from autopeft.spaces.configuration import Configuration, Scalar
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.space import SearchSpace

FACTS = ("train_loss", "train_seconds", "evaluation_seconds", "tokens", "peak_bytes")
"""What is kept of every epoch beside the metric."""


def table_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of what a script on a table is asked for: `--table` and `--tasks`, and what the caller adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=_file, default=ROOT / "benchmarks" / "tables" / "minilm.npz")
    parser.add_argument("--tasks", nargs="+", help="of the table; all when left out")
    return parser


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"no such file {path}; trained_table.py --pack writes one")
    return Path(path)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredTable:
    """Trainings of configurations of one space on several tasks, each from one or more seeds; failed ones count too."""

    about: Mapping[str, Any]
    """Space, shape of the model, training settings, rows, hashes of model and data, versions, hardware, date."""
    values: Sequence[Mapping[str, Scalar]]
    """What each configuration spells, as `SearchSpace.spell` gives it."""
    task: NDArray[np.int64]
    """`[r]` of every training, as the place in `tasks`."""
    index: NDArray[np.int64]
    """`[r]` into `values`."""
    seed: NDArray[np.int64]
    """`[r]`"""
    parameters: NDArray[np.int64]
    """`[r]` trained adapter parameters, counted on the built tensors; 0 of one that failed."""
    epochs: NDArray[np.float64]
    """`[r, epochs, 1 + FACTS]` the task's metric and the `FACTS`, cumulative as in a `Measurement`; NaN from where a
    training failed."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.about["metrics"])

    @classmethod
    def of(
        cls, about: Mapping[str, Any], values: Sequence[Mapping[str, Scalar]], rows: Sequence[Mapping[str, Any]]
    ) -> "MeasuredTable":
        """From rows with `task`, `index`, `seed` and the JSON of their `measurements`."""
        metrics: Mapping[str, str] = about["metrics"]
        epochs = np.full((len(rows), about["settings"]["epochs"], 1 + len(FACTS)), np.nan)
        for place, row in enumerate(rows):
            for one in row["measurements"]:
                epochs[place, one["epoch"] - 1] = [one["metrics"][metrics[row["task"]]], *(one[key] for key in FACTS)]
        counts = [row["measurements"][-1]["parameters"] if row["measurements"] else 0 for row in rows]
        return cls(
            about=about,
            values=values,
            task=np.array([list(metrics).index(row["task"]) for row in rows], dtype=np.int64),
            index=np.array([row["index"] for row in rows], dtype=np.int64),
            seed=np.array([row["seed"] for row in rows], dtype=np.int64),
            parameters=np.array(counts, dtype=np.int64),
            epochs=epochs,
        )

    @classmethod
    def read(cls, path: Path) -> "MeasuredTable":
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("task", "index", "seed", "parameters", "epochs")}
            return cls(about=json.loads(str(file["about"])), values=json.loads(str(file["values"])), **arrays)

    def write(self, path: Path) -> None:
        texts = {"about": json.dumps(dict(self.about)), "values": json.dumps([dict(row) for row in self.values])}
        arrays = {name: getattr(self, name) for name in ("task", "index", "seed", "parameters", "epochs")}
        np.savez_compressed(path, allow_pickle=False, **{key: np.array(text) for key, text in texts.items()}, **arrays)

    def space(self) -> SearchSpace:
        """The space that was drawn from, bound to the model's shape."""
        definition = SpaceDefinition.from_mapping(self.about["space"])
        return SearchSpace.bind(definition, ModelShape.from_json(self.about["shape"]))

    def configurations(self, space: SearchSpace) -> list[Configuration]:
        return [space.assemble(row) for row in self.values]

    def measurements(self, row: int) -> tuple[Measurement, ...]:
        """Of one training, epoch by epoch; none where it failed before the first ended."""
        metric = self.about["metrics"][self.tasks[self.task[row]]]
        whole = [epoch for epoch in range(self.epochs.shape[1]) if np.isfinite(self.epochs[row, epoch]).all()]
        return tuple(self._measurement(row, epoch, metric) for epoch in whole)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What the table was made of (`of`), as far as it is kept: why a training failed is not."""
        for place, (task, index, seed) in enumerate(zip(self.task, self.index, self.seed, strict=True)):
            measured = [one.to_json() for one in self.measurements(place)]
            failure = None if len(measured) == self.epochs.shape[1] else ["failed", "see the table it is from"]
            name = self.tasks[task]
            yield {"task": name, "index": int(index), "seed": int(seed), "measurements": measured, "failure": failure}

    def _measurement(self, row: int, epoch: int, metric: str) -> Measurement:
        value, loss, training, evaluation, tokens, peak = (float(one) for one in self.epochs[row, epoch])
        return Measurement(
            epoch=epoch + 1,
            metrics={metric: value},
            train_loss=loss,
            train_seconds=training,
            evaluation_seconds=evaluation,
            tokens=int(tokens),
            peak_bytes=int(peak),
            parameters=int(self.parameters[row]),
        )

    def told(self) -> str:
        """Its size in words."""
        counts = [len(np.unique(self.index[self.task == place])) for place in range(len(self.tasks))]
        each = ", ".join(f"{task} {count}" for task, count in zip(self.tasks, counts, strict=True))
        return f"{len(self.task)} trainings, configurations: {each}"
