"""A front found on one task and moved to another, against searching there: replayed on a table of real trainings.

    python benchmarks/front_transfer.py [--table benchmarks/tables/minilm.npz] [--tasks trec sst2 mr] [--seeds 20]
        [--trials 30]

A `bayesian` search of `--trials` trainings on every task, from so many seeds (`replay.py` says how a table answers it).
The front that a search saw, chosen by the noisy scores of one training each, is what `autopeft transfer` would train
again on the other task: one training a point. What counts there is the hypervolume of the points' means over seeds, as
a share of that of the whole table, beside that of the same seed's search of the other task: after as many trainings as
the front has points, after all of them, and after how many it had as much as the moved front (one more than all where
it never had). `random` is as many uniform draws as the front has points. Means over seeds with intervals of 95 %
(percentiles of 1,000 bootstrap samples of the seeds). A row for every pair of tasks goes to
`benchmarks/results/front_transfer.jsonl`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from common import write_rows
from measured_table import table_parser
from replay import Problem, search

from autopeft.objectives.interval import bootstrap
from autopeft.objectives.pareto import Array, non_dominated
from autopeft.search.bayesian import BayesianSearcher
from autopeft.search.schedulers import make_scheduler
from autopeft.search.searcher import SearchProblem
from autopeft.search.surrogate import one_thread
from autopeft.spaces.configuration import Configuration

ENGINE = "bayesian"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """One search of one task."""

    front: tuple[Configuration, ...]
    """Of the scores that it saw."""
    curve: Array
    """`[n_trials]` share of the table's volume after every training."""


def searched(problem: Problem, *, seed: int, n_trials: int) -> Searched:
    asked = SearchProblem(space=problem.space, objectives=problem.objectives, seed=seed, n_trials=n_trials)
    scheduler = make_scheduler(None, problem.objectives, epochs=problem.epochs)
    answers = problem.answers(seed)
    searcher = BayesianSearcher(asked, among=lambda history: answers.left)
    steps = list(search(searcher, scheduler, answers, problem.space, n_trials=n_trials))
    done = steps[-1].done
    curve = np.array([problem.volume(done[: n + 1]) for n in range(len(done))])
    return Searched(front=seen_front(problem, done, seed=seed), curve=curve)


def seen_front(problem: Problem, done: Sequence[Configuration], *, seed: int) -> tuple[Configuration, ...]:
    """The front of the scores of the one training of each that a search of `seed` sees."""
    places = {one: place for place, one in enumerate(problem.configurations)}
    metric = problem.objectives[0]
    losses = [
        (metric.to_loss(problem.seen(places[one], seed)[-1].metrics[metric.name]), problem.space.parameters(one))
        for one in done
    ]
    return tuple(one for one, kept in zip(done, non_dominated(np.array(losses, dtype=float)), strict=True) if kept)


def moved(source: Searched, there: Searched, problem: Problem, *, seed: int) -> dict[str, float]:
    """What `source`'s front is worth on the task of `problem`, beside `there`, the search of that task."""
    n = len(source.front)
    share = problem.volume(source.front)
    drawn = [problem.configurations[place] for place in problem.order(seed)[:n]]
    as_much = there.curve >= share
    return {
        "points": n,
        "moved": share,
        "searched_as_many": float(there.curve[n - 1]),
        "searched": float(there.curve[-1]),
        "random_as_many": problem.volume(drawn),
        "trials_to_as_much": float(as_much.argmax() + 1) if as_much.any() else float(len(there.curve) + 1),
    }


def interval(values: Array) -> list[float]:
    """Mean over seeds and the ends of its interval."""
    found = bootstrap(lambda rows: float(values[rows].mean()), len(values))
    return [round(one, 4) for one in (float(values.mean()), found.low, found.high)]


def row_of(source: str, target: str, found: Sequence[dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    values = {key: interval(np.array([one[key] for one in found])) for key in found[0]}
    wins = float(np.mean([one["moved"] > one["searched_as_many"] for one in found]))
    return {
        "benchmark": "front_transfer",
        "source": source,
        "target": target,
        "engine": ENGINE,
        "seeds": options.seeds,
        "trials": options.trials,
        **values,
        "ahead_of_searched_as_many": round(wins, 3),
    }


def told(row: dict[str, Any]) -> str:
    names = ("moved", "searched_as_many", "random_as_many", "searched", "trials_to_as_much")
    cells = "  ".join(f"{row[name][0]:7.3f} ({row[name][1]:.3f} to {row[name][2]:.3f})" for name in names)
    return f"{row['source']:>5} to {row['target']:5} {row['points'][0]:6.1f}  {cells}"


def main() -> None:
    parser = table_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = Problem.all_of(options.table, options.tasks)
    found: dict[str, list[Searched]] = {}
    with one_thread():
        for task, problem in problems.items():
            found[task] = [searched(problem, seed=seed, n_trials=options.trials) for seed in range(options.seeds)]
            print(f"{task}: {options.seeds} searches", file=sys.stderr, flush=True)
    pairs = [(source, target) for source in problems for target in problems if source != target]
    rows = [row_of(*pair, compared(found, problems[pair[1]], *pair), options) for pair in pairs]
    print("share of the table's volume: moved front, search of as many trainings, random of as many, whole search;")
    print("trials of the search to as much as the moved front (after `points` trainings)")
    print("\n".join(told(row) for row in rows), write_rows("front_transfer", rows), sep="\n")


def compared(found: dict[str, list[Searched]], problem: Problem, source: str, target: str) -> list[dict[str, float]]:
    pairs = zip(found[source], found[target], strict=True)
    return [moved(one, other, problem, seed=seed) for seed, (one, other) in enumerate(pairs)]


if __name__ == "__main__":
    main()
