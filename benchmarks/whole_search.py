"""A whole search, ours against Ray Tune with Optuna, Hugging Face `Trainer` and `peft`, as their guides write it.

    python benchmarks/whole_search.py [DATA] [--device cpu|cuda] [--tiny] [--trials N] [--epochs N] [--sides ours peer]

DATA is a folder with train.csv and validation.csv (columns text, maybe text_pair, and label), or the word `words` for
rows that are made up (the default). Both sides search rank, dropout and learning rate of a LoRA on queries and values
for the best accuracy, from the same seed, with the same epochs, batches and stopping rule (asynchronous successive
halving by three from the first epoch on), on the same device with the same number of jobs at once. The peer gets its
rows tokenised before the clock starts. The two rules differ in ties: a trial of Ray's goes on that equals the cutoff,
ours counts places. Prints trials per hour and the best accuracy; appends a row a side to
benchmarks/results/whole_search.jsonl.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import transformers
from common import write_rows
from models import SHAPES, make_model, make_rows
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from step_time import default_model
from trainer_peer import Recipe, Rows, tokenized, train

from autopeft import search
from autopeft.search.trial import TrialState
from autopeft.spaces.model_shape import Role
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings
from autopeft.trainers.model import read_shape
from autopeft.trainers.trainer import Trainer

RANKS = (2, 4, 8, 16)
RATES = (1e-4, 1e-2)
DROPOUTS = (0.0, 0.1)
REDUCTION = 3
Told = dict[str, Any]


def ours(options: argparse.Namespace, model: str, data: Path, scratch: Path) -> Told:
    """A study of ours, from its file to its last trial."""
    study = search(
        {
            "study": "whole",
            "model": model,
            "task": {
                "kind": "text-classification",
                "data": {"train": str(data / "train.csv"), "validation": str(data / "validation.csv")}
                | ({"max_train_rows": options.rows, "max_validation_rows": options.rows} if options.rows else {}),
                "text": list(columns_of(data)),
                "label": "label",
                "metric": "accuracy",
            },
            "space": {
                "lora": {"rank": f"choice{RANKS}", "dropout": f"choice{DROPOUTS}", "targets": "query-value"},
                "learning_rate": f"log({RATES[0]}, {RATES[1]})",
            },
            "objectives": ["accuracy"],
            "search": {"engine": "bayesian", "trials": options.trials, "seed": 0},
            "training": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "max_length": options.max_length,
                "fidelity": {"reduction": REDUCTION, "minimum": 1},
            },
            "resources": {
                "max_jobs": options.jobs,
                "gpus_per_job": 1.0 / options.jobs if options.device == "cuda" else 0,
                "trials_per_job": options.trials_per_job,
            },
            "tracking": {"mlflow": None},
            "confirm": {"after_search": False},
        },
        storage=f"sqlite:///{scratch}/whole.db",
        progress=False,
    )
    history = study.history()
    best = [trial.final.metrics["accuracy"] for trial in history.completed if trial.final is not None]
    return {
        "trials": len(history),
        "completed": len(history.completed),
        "stopped_early": len(history.in_state(TrialState.PRUNED)),
        "epochs_trained": sum(len(trial.measurements) for trial in history),
        "best_accuracy": max(best, default=0.0),
    }


def peer(options: argparse.Namespace, recipe: Recipe, rows: Rows, scratch: Path) -> Told:
    """The same search by Ray Tune, Optuna and Trainer: a function that reports its accuracy after every epoch."""

    def trainable(config: dict[str, Any]) -> None:
        transformers.logging.set_verbosity_error()
        own = Recipe(
            **{
                **{name: getattr(recipe, name) for name in recipe.__dataclass_fields__},
                "rank": config["rank"],
                "alpha": 16.0,
                "dropout": config["dropout"],
                "learning_rate": config["learning_rate"],
            }
        )
        train(
            own,
            ray.get(held),
            seed=0,
            folder=str(scratch / "peer"),
            grouped=False,
            bf16=options.device == "cuda",
            told=lambda accuracy: tune.report({"accuracy": accuracy}),
        )

    held = ray.put(rows)
    share = {"cpu": 1, "gpu": 1.0 / options.jobs if options.device == "cuda" else 0}
    tuner = tune.Tuner(
        tune.with_resources(trainable, share),
        param_space={
            "rank": tune.choice(list(RANKS)),
            "dropout": tune.choice(list(DROPOUTS)),
            "learning_rate": tune.loguniform(*RATES),
        },
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=options.trials,
            max_concurrent_trials=options.jobs,
            search_alg=OptunaSearch(seed=0),
            scheduler=ASHAScheduler(max_t=options.epochs, grace_period=1, reduction_factor=REDUCTION),
        ),
        run_config=tune.RunConfig(storage_path=str(scratch / "tune"), verbose=0),
    )
    grid = tuner.fit()
    found = [grid[index] for index in range(len(grid))]
    epochs = [int((result.metrics or {}).get("training_iteration", 0)) for result in found]
    whole = [result for result, n in zip(found, epochs, strict=True) if n == options.epochs]
    return {
        "trials": len(found),
        "completed": len(whole),
        "stopped_early": sum(n < options.epochs for n in epochs),
        "epochs_trained": sum(epochs),
        "failed": grid.num_errors,
        "best_accuracy": max(((result.metrics or {}).get("accuracy", 0.0) for result in whole), default=0.0),
    }


def columns_of(data: Path) -> tuple[str, ...]:
    header = (data / "train.csv").open(encoding="utf-8").readline().strip().split(",")
    return tuple(name for name in ("text", "text_pair") if name in header)


def recipe_of(options: argparse.Namespace, model: str) -> Recipe:
    roles = (Role.QUERY, Role.VALUE, Role.QUERY_KEY_VALUE)
    sites = read_shape(ModelSpec(name=model)).layers[0]
    return Recipe(
        model=model,
        rank=8,
        alpha=16.0,
        dropout=0.0,
        targets=tuple(site.name.rpartition(".")[2] for site in sites if site.role in roles),
        learning_rate=1e-3,
        warmup_ratio=0.06,
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_length=options.max_length,
        device=options.device,
    )


def peer_rows(options: argparse.Namespace, recipe: Recipe, data: Path) -> Rows:
    files = DataSpec(
        train=str(data / "train.csv"),
        validation=str(data / "validation.csv"),
        max_train_rows=options.rows,
        max_validation_rows=options.rows,
    )
    task = TaskSpec(kind="text-classification", data=files, text=columns_of(data), label="label", metric="accuracy")
    settings = TrainingSettings(batch_size=options.batch_size, max_length=options.max_length)
    splits = Trainer(ModelSpec(name=recipe.model), task, settings, device="cpu").splits
    return tokenized(splits, recipe, padded=False)


def timed(run: Callable[[], Told]) -> Told:
    began = time.perf_counter()
    told = run()
    seconds = time.perf_counter() - began
    return told | {"seconds": round(seconds, 1), "trials_per_hour": round(3600 * told["trials"] / seconds, 1)}


def main() -> None:
    options = read_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        os.environ.setdefault("AUTOPEFT_CACHE", str(scratch / "cache"))
        model = options.model or ("roberta-base" if options.device == "cuda" or options.tiny else default_model())
        if model in SHAPES:
            model = str(make_model(model, scratch / "model", tiny=options.tiny, causal=False, device=options.device))
        data = Path(options.data)
        if options.data == "words":
            data = make_rows(scratch / "rows", tiny=options.tiny, mean_tokens=options.mean_tokens)
        recipe = recipe_of(options, model)
        rows = peer_rows(options, recipe, data)
        ray.init(num_cpus=max(options.jobs, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
        runs: dict[str, Callable[[], Told]] = {
            "ours": lambda: ours(options, model, data, scratch),
            "peer": lambda: peer(options, recipe, rows, scratch),
        }
        told = {side: timed(runs[side]) for side in options.sides}
        ray.shutdown()
    common = {
        "benchmark": "whole-search",
        "data": options.data if options.data == "words" else data.name,
        "model": options.model or Path(model).name,
        **{key: getattr(options, key) for key in ("device", "epochs", "batch_size", "max_length", "jobs", "tiny")},
        "trials_per_job": options.trials_per_job,
        "rows": len(rows.train),
        "validation_rows": len(rows.validation),
    }
    for side, row in told.items():
        print(
            f"{side:6} {row['trials_per_hour']:8.1f} trials/h  {row['epochs_trained']:4} epochs  "
            f"{row['stopped_early']:3} of {row['trials']} stopped  best {row['best_accuracy']:.4f}"
        )
    print(write_rows("whole_search", [{**common, "side": side, **row} for side, row in told.items()]))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="words")
    parser.add_argument("--model", help="a folder, or a row of models.SHAPES")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", nargs="*", choices=("ours", "peer"), default=["ours", "peer"])
    parser.add_argument("--trials", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="at once, on both sides")
    parser.add_argument("--trials-per-job", default="auto", type=lambda text: text if text == "auto" else int(text))
    parser.add_argument("--rows", type=int, help="at most, of each split")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--mean-tokens", type=int, default=48, help="of made-up rows")
    parser.add_argument("--tiny", action="store_true", help="a small model and few rows, to try the script")
    options = parser.parse_args()
    options.trials = options.trials or (4 if options.tiny else 12 if options.device == "cpu" else 24)
    options.rows = options.rows or (48 if options.tiny else 256)
    return options


if __name__ == "__main__":
    main()
