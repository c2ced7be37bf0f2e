"""A whole search, ours against Ray Tune with Optuna, Hugging Face `Trainer` and `peft`, as their guides write it.

    python benchmarks/whole_search.py [DATA] [--device cpu|cuda] [--trials N] [--jobs N] [--rows N] [--sides ours ...]

DATA is a folder with train.csv and validation.csv (columns text, maybe text_pair, and label), or the word `words` for
rows that are made up (the default). All sides search rank, dropout and learning rate of a LoRA on queries and values
for high accuracy and few parameters, with the same rows, epochs, batches, stopping rule (asynchronous successive
halving by three from the first epoch on), device and number of jobs at once, each by the methods it has for that. The
peers get their rows tokenised before the clock starts, and write neither adapters nor checkpoints. Sides: `ours`;
`peer`, as the guides write it; `tuned`, that with length grouping and, where the hardware multiplies it, bf16, which
ours has anyway.

The two rules differ: Ray's looks at accuracy alone, and a trial that equals the cutoff goes on; ours keeps the best
third by rank of domination, and trials go on later that a longer list of trials puts into it.

A front is of trials that were trained to the end. Its hypervolume is that of error below that of the commonest label,
and of the logarithm of parameters below twice the largest; `seconds_to_95` is when a side had 95 % of that of all sides
together. Appends a row a side as it ends, and at last one that compares them, to benchmarks/results/whole_search.jsonl.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import transformers
from common import write_rows
from models import SHAPES, make_model, make_rows
from search_sides import ALPHA, RANKS, Ended, columns_of, ours, peer
from step_time import default_model
from trainer_peer import Recipe, Rows, tokenized

from autopeft.objectives.hypervolume import hypervolume
from autopeft.spaces.model_shape import ModelShape, Role
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings
from autopeft.trainers.model import read_shape
from autopeft.trainers.trainer import Trainer

ROLES = (Role.QUERY, Role.VALUE, Role.QUERY_KEY_VALUE)
SIDES = ("ours", "peer", "tuned")
SHARE = 0.95
Told = dict[str, Any]


def recipe_of(options: argparse.Namespace, model: str, shape: ModelShape) -> Recipe:
    return Recipe(
        model=model,
        rank=8,
        alpha=ALPHA,
        dropout=0.0,
        targets=tuple(site.name.rpartition(".")[2] for site in shape.layers[0] if site.role in ROLES),
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
        max_validation_rows=options.validation_rows,
    )
    task = TaskSpec(kind="text-classification", data=files, text=columns_of(data), label="label", metric="accuracy")
    settings = TrainingSettings(batch_size=options.batch_size, max_length=options.max_length)
    splits = Trainer(ModelSpec(name=recipe.model), task, settings, device="cpu").splits
    return tokenized(splits, recipe, padded=False)


def timed(run: Callable[[], list[Ended]]) -> Told:
    """What a side's trials came to; an error instead where it broke down."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    try:
        trials = run()
    except Exception as error:  # noqa: BLE001  # one side that breaks down must not cost the others' rows
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - began
    whole = [trial for trial in trials if trial.whole and trial.accuracy is not None]
    return {
        "seconds": round(seconds, 1),
        "trials": len(trials),
        "trials_per_hour": round(3600 * len(trials) / seconds, 1),
        "completed": len(whole),
        "stopped_early": sum(not trial.whole and trial.failure is None for trial in trials),
        "failed": sum(trial.failure is not None for trial in trials),
        "epochs_trained": sum(trial.epochs for trial in trials),
        "epochs_per_hour": round(3600 * sum(trial.epochs for trial in trials) / seconds, 1),
        "best_accuracy": max((trial.accuracy for trial in whole if trial.accuracy is not None), default=None),
        "load_before": round(load, 2),
        "trials_ended": [asdict(trial) for trial in trials],
    }


def compared(told: dict[str, Told], *, most: int, worst: float) -> dict[str, Told]:
    """For each side the share that it has of all sides' hypervolume at its end, and when it had 95 % of it.

    Args:
        told: By side.
        most: Parameters of the largest configuration.
        worst: Error of the commonest label.
    """
    corner = np.log2(most) + 1
    trials = {side: [row for row in told[side]["trials_ended"] if row["whole"]] for side in told}

    def area(rows: Sequence[Told]) -> float:
        losses = [(1 - row["accuracy"], np.log2(row["parameters"])) for row in rows]
        return hypervolume(np.array(losses, dtype=float).reshape(-1, 2), np.array([worst, corner]))

    joint = area([row for rows in trials.values() for row in rows])
    found: dict[str, Told] = {}
    for side, rows in trials.items():
        ordered = sorted(rows, key=lambda row: row["seconds"])
        reached = (
            row["seconds"] for n, row in enumerate(ordered, 1) if joint > 0 and area(ordered[:n]) >= SHARE * joint
        )
        found[side] = {
            "share_of_joint_hypervolume": round(area(rows) / joint, 4) if joint > 0 else None,
            "seconds_to_95": next(reached, None),
        }
    return found


def main() -> int:
    options = read_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        os.environ.setdefault("AUTOPEFT_CACHE", str(scratch / "cache"))
        model, data = prepared(options, scratch)
        shape = read_shape(ModelSpec(name=model))
        per_rank = sum(site.d_in + site.d_out for layer in shape.layers for site in layer if site.role in ROLES)
        recipe = recipe_of(options, model, shape)
        rows = peer_rows(options, recipe, data)
        runs: dict[str, Callable[[], list[Ended]]] = {
            "ours": lambda: ours(options, model, data, scratch / "ours"),
            "peer": lambda: peer(options, recipe, rows, scratch / "peer", per_rank=per_rank, tuned=False),
            "tuned": lambda: peer(options, recipe, rows, scratch / "tuned", per_rank=per_rank, tuned=True),
        }
        common = common_of(options, model, data, rows)
        ray.init(num_cpus=max(options.jobs, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
        told: dict[str, Told] = {}
        for side in options.sides:
            (scratch / side).mkdir()
            told[side] = timed(runs[side])
            write_rows("whole_search", [{"benchmark": "whole-search-side", **common, "side": side, **told[side]}])
            show(side, told[side])
        ray.shutdown()
    labels = Counter(row["label"] for row in rows.validation)
    ran = {side: row for side, row in told.items() if "error" not in row}
    found = compared(ran, most=per_rank * max(RANKS), worst=1 - max(labels.values()) / len(rows.validation))
    first = ran.get("ours")
    for side, row in found.items():
        row |= {name: ran[side][name] for name in ("seconds", "trials_per_hour", "completed", "best_accuracy")}
        row["ours_faster"] = first and round(first["trials_per_hour"] / row["trials_per_hour"], 2)
        print(
            f"{side:6} ours is faster by {row['ours_faster'] or '?'}; {row['share_of_joint_hypervolume'] or 0:.1%} of"
            f" the joint hypervolume, 95 % of it after {row['seconds_to_95'] or '?'} s"
        )
    print(write_rows("whole_search", [{"benchmark": "whole-search", **common, "sides": found}]))
    return int(len(ran) < len(told) or any(row["failed"] for row in ran.values()))


def prepared(options: argparse.Namespace, scratch: Path) -> tuple[str, Path]:
    """Folder of the model, and of the rows."""
    model = options.model or ("roberta-base" if options.device == "cuda" or options.tiny else default_model())
    if model in SHAPES:
        model = str(make_model(model, scratch / "model", tiny=options.tiny, causal=False, device=options.device))
    if options.data == "words":
        return model, make_rows(scratch / "rows", tiny=options.tiny, mean_tokens=options.mean_tokens)
    return model, Path(options.data).resolve()


def common_of(options: argparse.Namespace, model: str, data: Path, rows: Rows) -> Told:
    names = ("device", "epochs", "batch_size", "max_length", "jobs", "trials_per_job", "tiny")
    return {
        "data": options.data if options.data == "words" else data.name,
        "model": options.model or Path(model).name,
        **{name: getattr(options, name) for name in names},
        "rows": len(rows.train),
        "validation_rows": len(rows.validation),
    }


def show(side: str, row: Told) -> None:
    if "error" in row:
        print(f"{side:6} broke down: {row['error']}", flush=True)
        return
    best = "none completed" if row["best_accuracy"] is None else f"best {row['best_accuracy']:.4f}"
    print(
        f"{side:6} {row['seconds']:7.1f} s  {row['trials_per_hour']:8.1f} trials/h  {row['epochs_trained']:4} epochs  "
        f"{row['stopped_early']:3} of {row['trials']} stopped, {row['failed']} failed  {best}",
        flush=True,
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="words")
    parser.add_argument("--model", help="a folder, or a row of models.SHAPES")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=["ours", "peer"])
    parser.add_argument("--trials", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="at once, on all sides")
    parser.add_argument("--trials-per-job", default="auto", type=lambda text: text if text == "auto" else int(text))
    parser.add_argument("--rows", type=int, help="at most, of the training split")
    parser.add_argument("--validation-rows", type=int, help="at most; as many as --rows where left out")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--mean-tokens", type=int, default=48, help="of made-up rows")
    parser.add_argument("--tiny", action="store_true", help="a small model and few rows, to try the script")
    options = parser.parse_args()
    options.trials = options.trials or (4 if options.tiny else 12 if options.device == "cpu" else 24)
    options.rows = options.rows or (48 if options.tiny else 256)
    options.validation_rows = options.validation_rows or options.rows
    return options


if __name__ == "__main__":
    sys.exit(main())
