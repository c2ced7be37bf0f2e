"""Trials per hour of one LoRA after the other, against Hugging Face `Trainer` with `peft`, in one run.

    python benchmarks/single_trial.py [DATA] [--model NAME] [--seeds 3] [--epochs 2] [--rows N] [--sides ours guide ...]

DATA is a folder with train.csv and validation.csv (columns text, maybe text_pair, and label), or the word `words` for
rows that are made up (the default). NAME is a folder or a row of models.SHAPES; the packaged MiniLM when left out.
Every side trains the same configuration on the same rows with the same batch size, epochs, schedule and seeds, and
scores the validation rows after each epoch; the sides take turns, seed by seed. Prints medians, the final metric with
its interval and where the time goes; appends a row a trial as it ends, and a row a side, to
benchmarks/results/single_trial.jsonl.

Sides: `ours`; `tutorial`, rows padded to the full length once, as in the fine-tuning tutorial of transformers; `guide`,
each batch padded to its longest row, as in its guide to text classification; `grouped`, that with length grouping;
`bf16`, that with length grouping and bf16.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import write_rows
from models import SHAPES, make_model, make_rows
from parts import PARTS, Parts
from scipy.stats import t as student
from step_time import default_model
from trainer_peer import Recipe, tokenized, train

from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.model_shape import ModelShape, Role
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings, TrainJob
from autopeft.trainers.model import read_shape
from autopeft.trainers.trainer import Trainer

PEERS: dict[str, dict[str, bool]] = {
    "tutorial": {"padded": True, "grouped": False, "bf16": False},
    "guide": {"padded": False, "grouped": False, "bf16": False},
    "grouped": {"padded": False, "grouped": True, "bf16": False},
    "bf16": {"padded": False, "grouped": True, "bf16": True},
}
LEVEL = 0.95
Side = Callable[[int], float]
"""Seed to final metric."""


def lora(shape: ModelShape, recipe: Recipe) -> Configuration:
    """LoRA on the recipe's sites of every layer."""
    n = shape.n_layers
    targets = tuple(site.name for site in shape.layers[0] if site.name.rpartition(".")[2] in recipe.targets)
    fields = {
        "alpha": (recipe.alpha,) * n,
        "dropout": (recipe.dropout,) * n,
        "rank": (recipe.rank,) * n,
        "targets": (targets,) * n,
    }
    setting = MethodSetting(method="lora", layers=tuple(range(n)), fields=tuple(sorted(fields.items())))
    return Configuration(methods=(setting,), training=())


def our_trainer(recipe: Recipe, task: TaskSpec) -> Trainer:
    settings = TrainingSettings(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        max_length=recipe.max_length,
        learning_rate=recipe.learning_rate,
        warmup_ratio=recipe.warmup_ratio,
    )
    return Trainer(ModelSpec(name=recipe.model), task, settings, device=recipe.device)


def our_trial(trainer: Trainer, recipe: Recipe, seed: int) -> float:
    job = TrainJob(configurations=(lora(trainer.shape, recipe),), seeds=(seed,), epochs=recipe.epochs)
    last = list(trainer.run(job))[-1]
    assert last.measurement is not None, last.failure
    return last.measurement.metrics["accuracy"]


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of Student's interval of it; None where there is one value."""
    mean = round(float(np.mean(values)), 5)
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, round(float(student.ppf(0.5 + LEVEL / 2, len(values) - 1)) * error, 5)


def timed(name: str, side: Side, seed: int) -> dict[str, Any]:
    """One trial: wall-clock and processor seconds, and its metric (reading it waits for the device)."""
    began, cpu = time.perf_counter(), time.process_time()
    accuracy = side(seed)
    row = {
        "side": name,
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "accuracy": round(accuracy, 5),
        "load": round(os.getloadavg()[0], 2),
    }
    print(f"{name:10} seed {seed}: {row['seconds']:8.1f} s, {row['cpu_seconds']:8.1f} s of processor", flush=True)
    return row


def summary(name: str, trials: list[dict[str, Any]], ours: list[dict[str, Any]], shares: dict[str, float]) -> Any:
    """Medians; ratios and the difference of the metric are taken seed by seed."""
    pairs = [(own, row) for own in ours for row in trials if own["seed"] == row["seed"]]
    mean, half = interval([row["accuracy"] for row in trials])
    difference, margin = interval([own["accuracy"] - row["accuracy"] for own, row in pairs])
    seconds = float(np.median([row["seconds"] for row in trials]))

    def ratio(of: str) -> float:
        return round(float(np.median([row[of] / own[of] for own, row in pairs])), 3)

    return {
        "side": name,
        "trials": len(trials),
        "seconds": seconds,
        "cpu_seconds": float(np.median([row["cpu_seconds"] for row in trials])),
        "trials_per_hour": round(3600 / seconds, 1),
        "ours_faster": ratio("seconds"),
        "ours_faster_by_cpu": ratio("cpu_seconds"),
        "accuracy": mean,
        "accuracy_half_width": half,
        "ours_minus_this": difference,
        "difference_half_width": margin,
        "shares": shares,
    }


def task_of(options: argparse.Namespace, scratch: Path) -> TaskSpec:
    data = Path(options.data)
    if options.data == "words":
        data = make_rows(scratch / "rows", tiny=options.tiny, mean_tokens=options.mean_tokens)
    header = (data / "train.csv").open(encoding="utf-8").readline().strip().split(",")
    files = DataSpec(
        train=str(data / "train.csv"),
        validation=str(data / "validation.csv"),
        max_train_rows=options.rows,
        max_validation_rows=options.validation_rows or options.rows,
    )
    text = tuple(name for name in ("text", "text_pair") if name in header)
    return TaskSpec(kind="text-classification", data=files, text=text, label="label", metric="accuracy")


def recipe_of(options: argparse.Namespace, scratch: Path) -> Recipe:
    model = options.model or default_model()
    if model in SHAPES:
        model = str(make_model(model, scratch / "model", tiny=options.tiny, causal=False, device=options.device))
    roles = (Role.QUERY, Role.VALUE, Role.QUERY_KEY_VALUE)
    sites = read_shape(ModelSpec(name=model)).layers[0]
    return Recipe(
        model=model,
        rank=options.rank,
        alpha=2.0 * options.rank,
        dropout=options.dropout,
        targets=tuple(site.name.rpartition(".")[2] for site in sites if site.role in roles),
        learning_rate=options.learning_rate,
        warmup_ratio=0.06,
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_length=options.max_length,
        device=options.device,
    )


def sides_of(options: argparse.Namespace, recipe: Recipe, trainer: Trainer, scratch: Path) -> dict[str, Side]:
    sides: dict[str, Side] = {"ours": partial(our_trial, trainer, recipe)}
    for name in options.sides:
        how = PEERS[name]
        rows = tokenized(trainer.splits, recipe, padded=how["padded"])
        sides[name] = partial(
            lambda rows, how, seed: train(
                recipe, rows, seed=seed, folder=str(scratch), grouped=how["grouped"], bf16=how["bf16"]
            ),
            rows,
            how,
        )
    return sides


def where(side: Side, trainer: Trainer, device: str) -> dict[str, float]:
    """Share of each part in the time of one more trial."""
    parts = Parts(device)
    with parts.watching(type(trainer.loaded.model)):
        side(0)
    return parts.shares()


def main() -> None:
    options = arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        recipe = recipe_of(options, scratch)
        trainer = our_trainer(recipe, task_of(options, scratch))
        trainer.tokens("train"), trainer.tokens("validation")
        sides = sides_of(options, recipe, trainer, scratch)
        names = list(sides)
        common = common_of(options, trainer)
        trials: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            turn = seed % len(names)
            for name in (*names[turn:], *names[:turn]):
                trials.append(timed(name, sides[name], seed))
                write_rows("single_trial", [{"benchmark": "single-trial", **common, **trials[-1]}])
        shares = {name: where(side, trainer, options.device) for name, side in sides.items()} if options.parts else {}
    by_side = {name: [row for row in trials if row["side"] == name] for name in names}
    totals = [summary(name, rows, by_side["ours"], shares.get(name, {})) for name, rows in by_side.items()]
    show(totals)
    rows = [{"benchmark": "single-trial-summary", **common, **row} for row in totals]
    print(write_rows("single_trial", rows))


def common_of(options: argparse.Namespace, trainer: Trainer) -> dict[str, Any]:
    """What every row says of the run."""
    return {
        "data": options.data if options.data == "words" else Path(options.data).name,
        "model": options.model or "all-MiniLM-L6-v2",
        **{key: getattr(options, key) for key in ("epochs", "batch_size", "max_length", "rank", "dropout", "device")},
        "learning_rate": options.learning_rate,
        "threads": torch.get_num_threads(),
        "dtype": str(trainer.loaded.model.dtype).removeprefix("torch."),
        "rows": len(trainer.tokens("train")),
        "validation_rows": len(trainer.tokens("validation")),
        "mean_tokens": round(float(trainer.tokens("train").lengths.mean()), 1),
        "tiny": options.tiny,
    }


def show(totals: list[dict[str, Any]]) -> None:
    print(f"\n{'side':10} {'trials/h':>9} {'seconds':>9} {'processor':>9} {'ours':>7}   accuracy   ours minus this")
    for row in totals:
        half, margin = (f"{row[name]:.4f}" if row[name] is not None else "?" for name in _MARGINS)
        print(
            f"{row['side']:10} {row['trials_per_hour']:9.1f} {row['seconds']:9.1f} {row['cpu_seconds']:9.1f}"
            f" {row['ours_faster']:6.2f}x   {row['accuracy']:.4f} +- {half}   {row['ours_minus_this']:+.4f} +- {margin}"
        )
    if not any(row["shares"] for row in totals):
        return
    print("\n" + " ".join([f"{'share of':10}", *(f"{part:>11}" for part in PARTS)]))
    for row in totals:
        print(" ".join([f"{row['side']:10}", *(f"{row['shares'].get(part, math.nan):11.1%}" for part in PARTS)]))


_MARGINS = ("accuracy_half_width", "difference_half_width")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="words")
    parser.add_argument("--model")
    parser.add_argument("--sides", nargs="*", choices=list(PEERS), default=["guide", "grouped"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=None, help="at most, of the training split")
    parser.add_argument("--validation-rows", type=int, help="at most; as many as --rows where left out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--mean-tokens", type=int, default=48, help="of made-up rows")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="small models and few rows, to try the script")
    parser.add_argument("--no-parts", dest="parts", action="store_false", help="leave out where the time goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
