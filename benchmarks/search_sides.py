"""One search on every side: ours, and Ray Tune with Optuna, Hugging Face `Trainer` and `peft` as their guides have it.

A side's trials are rows of the same form: when it ended (seconds after the side began), the epochs that it had, what it
searched, and its last accuracy and its trained parameters, those of the head left out.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import transformers
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from trainer_peer import Recipe, Rows, train

from autopeft.search.trial import Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.studies.events import StudyEvent, TrialFinished
from autopeft.studies.study import Study
from autopeft.trainers.precision import has_fast_bfloat16

RANKS = (2, 4, 8, 16)
RATES = (1e-4, 1e-2)
DROPOUTS = (0.0, 0.1)
ALPHA = 16.0
REDUCTION = 3
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One trial of a side."""

    seconds: float
    """After the side began."""
    epochs: int
    whole: bool
    """Trained to the last epoch."""
    accuracy: float | None
    parameters: int | None
    rank: int
    dropout: float
    learning_rate: float
    failure: str | None = None


def ours(options: argparse.Namespace, model: str, data: Path, scratch: Path) -> list[Ended]:
    """A study of ours, from its file to its last trial."""
    study = Study.create(
        study="whole",
        model=model,
        task={
            "kind": "text-classification",
            "data": {
                "train": str(data / "train.csv"),
                "validation": str(data / "validation.csv"),
                "max_train_rows": options.rows,
                "max_validation_rows": options.validation_rows,
            },
            "text": list(columns_of(data)),
            "label": "label",
            "metric": "accuracy",
        },
        space={
            "lora": {
                "rank": f"choice{RANKS}",
                "dropout": f"choice{DROPOUTS}",
                "targets": "query-value",
                "alpha": ALPHA,
            },
            "learning_rate": f"log({RATES[0]}, {RATES[1]})",
        },
        objectives=["accuracy", "parameters"],
        search={"engine": "bayesian", "trials": options.trials, "seed": SEED},
        training={
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "max_length": options.max_length,
            "fidelity": {"reduction": REDUCTION, "minimum": 1},
        },
        resources={
            "max_jobs": options.jobs,
            "gpus_per_job": 1.0 / options.jobs if options.device == "cuda" else 0,
            "trials_per_job": options.trials_per_job,
        },
        tracking={"mlflow": None},
        confirm={"after_search": False},
        storage=f"sqlite:///{scratch}/whole.db",
    )
    began, found = time.perf_counter(), dict[int, Ended]()

    def heard(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished):
            found[event.trial.number] = _ended(event.trial, time.perf_counter() - began)

    study.run(listeners=[heard])
    return [found[number] for number in sorted(found)]


def _ended(trial: Trial, seconds: float) -> Ended:
    """A trial that went on after it had been stopped ends twice; the last time is the one that counts."""
    last = trial.measurements[-1] if trial.measurements else None
    return Ended(
        seconds=round(seconds, 1),
        epochs=len(trial.measurements),
        whole=trial.state is TrialState.COMPLETED,
        accuracy=None if last is None else round(last.metrics["accuracy"], 5),
        parameters=None if last is None else last.parameters,
        failure=None if trial.failure is None else trial.failure.message,
        **_searched(trial.configuration),
    )


def _searched(configuration: Configuration) -> dict[str, Any]:
    setting = configuration.methods[0]
    return {
        "rank": int(str(setting.column("rank")[0])),
        "dropout": float(str(setting.column("dropout")[0])),
        "learning_rate": float(f"{dict(configuration.training)['learning_rate']:.6g}"),
    }


def peer(
    options: argparse.Namespace, recipe: Recipe, rows: Rows, scratch: Path, *, per_rank: int, tuned: bool
) -> list[Ended]:
    """The same search by Ray Tune, Optuna and Trainer: a function that reports after every epoch.

    Args:
        options: Of the command.
        recipe: What all trials have in common.
        rows: Tokenised before the clock starts.
        scratch: For what Tune and the Trainer write.
        per_rank: Parameters that a LoRA of rank one trains.
        tuned: With length grouping, and bf16 where the hardware multiplies it; on a GPU bf16 is on either way.
    """
    bf16 = options.device == "cuda" or (tuned and has_fast_bfloat16(torch.device("cpu")))
    held = ray.put(rows)

    def trainable(config: dict[str, Any]) -> None:
        transformers.logging.set_verbosity_error()
        common = {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}
        parameters = per_rank * config["rank"]
        train(
            Recipe(**{**common, **config}),
            ray.get(held),
            seed=SEED,
            folder=str(scratch / "peer"),
            grouped=tuned,
            bf16=bf16,
            told=lambda accuracy: tune.report({"accuracy": accuracy, "parameters": parameters}),
        )

    share = {"cpu": 1, "gpu": 1.0 / options.jobs if options.device == "cuda" else 0}
    tuner = tune.Tuner(
        tune.with_resources(trainable, share),
        param_space={
            "rank": tune.choice(list(RANKS)),
            "dropout": tune.choice(list(DROPOUTS)),
            "learning_rate": tune.loguniform(*RATES),
        },
        tune_config=tune.TuneConfig(
            num_samples=options.trials,
            max_concurrent_trials=options.jobs,
            search_alg=OptunaSearch(metric=["accuracy", "parameters"], mode=["max", "min"], seed=SEED),
            scheduler=ASHAScheduler(
                metric="accuracy", mode="max", max_t=options.epochs, grace_period=1, reduction_factor=REDUCTION
            ),
        ),
        run_config=tune.RunConfig(storage_path=str(scratch / "tune"), verbose=0),
    )
    began = time.time()
    grid = tuner.fit()
    return [_reported(grid[index], began, options.epochs) for index in range(len(grid))]


def _reported(result: Any, began: float, epochs: int) -> Ended:
    metrics = result.metrics or {}
    trained = int(metrics.get("training_iteration", 0)) if "accuracy" in metrics else 0
    return Ended(
        seconds=round(float(metrics.get("timestamp", began)) - began, 1),
        epochs=trained,
        whole=trained == epochs,
        accuracy=round(metrics["accuracy"], 5) if trained else None,
        parameters=metrics["parameters"] if trained else None,
        rank=result.config["rank"],
        dropout=result.config["dropout"],
        learning_rate=float(f"{result.config['learning_rate']:.6g}"),
        failure=None if result.error is None else str(result.error).strip().splitlines()[-1][:300],
    )


def columns_of(data: Path) -> tuple[str, ...]:
    header = (data / "train.csv").open(encoding="utf-8").readline().strip().split(",")
    return tuple(name for name in ("text", "text_pair") if name in header)
