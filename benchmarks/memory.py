"""Predicted against measured peak training memory of every method, on MiniLM and the quickstart's data.

Usage: `python benchmarks/memory.py`; appends a row a method to `benchmarks/results/memory.jsonl`. Each method is on the
last two layers with its smallest useful size and trains one epoch on 64 rows.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import ROOT, write_rows

from autopeft.objectives.memory import predict_memory
from autopeft.spaces.canonical import configuration
from autopeft.spaces.methods import METHODS
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings, TrainJob
from autopeft.trainers.trainer import Trainer

sys.path.insert(0, str(ROOT / "examples"))
from quickstart import make_data, model_folder

BATCH_SIZE = 16
SIZE = 4


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        files = {split: str(folder / f"{split}.csv") for split in ("train", "validation", "test")}
        data = DataSpec(**files, max_train_rows=64, max_validation_rows=40)
        task = TaskSpec(kind="text-classification", data=data, text=("docstring",), label="package", metric="accuracy")
        settings = TrainingSettings(epochs=1, batch_size=BATCH_SIZE, max_length=64)
        trainer = Trainer(ModelSpec(name=str(model_folder())), task, settings)
        rows = [measure(trainer, method) for method in sorted(METHODS)]
    errors = np.array([row["error"] for row in rows], dtype=float)
    worst = max(rows, key=lambda row: abs(float(str(row["error"]))))
    print(f"{len(rows)} methods: mean absolute error {np.abs(errors).mean():.2%}, worst {worst['method']}")
    print(write_rows("memory", rows))


def measure(trainer: Trainer, method: str) -> dict[str, object]:
    size = METHODS[method].size_field
    row = {method: {size.name: 1 if size.high == 1 else SIZE, "layers": [4, 5]}, "learning_rate": 1e-3}
    chosen = configuration(row, trainer.shape)
    report = list(trainer.run(TrainJob(configurations=(chosen,), seeds=(1,), epochs=1)))[-1]
    assert report.measurement is not None, report.failure
    length = int(trainer.tokens("train").lengths.max())
    n_labels = len(trainer.splits.classes)
    predicted = predict_memory(trainer.shape, chosen, batch_size=BATCH_SIZE, length=length, n_labels=n_labels).total
    measured = report.measurement.peak_bytes
    error = predicted / measured - 1
    print(
        f"{method:18} measured {measured / 2**20:7.1f} MiB  predicted {predicted / 2**20:7.1f} MiB  {error:+.2%}",
        flush=True,
    )
    return {
        "benchmark": "memory",
        "method": method,
        "measured_bytes": measured,
        "predicted_bytes": predicted,
        "error": round(error, 5),
        "parameters": report.measurement.parameters,
        "dtype": trainer.shape.dtype,
        "batch_size": BATCH_SIZE,
        "length": length,
    }


if __name__ == "__main__":
    main()
