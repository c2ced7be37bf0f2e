"""Hypervolume by trials and by training cost of every search engine, replayed on a table of real trainings.

    python benchmarks/search_quality.py [--table benchmarks/tables/minilm.npz] [--tasks trec sst2] [--seeds 20]
    python benchmarks/search_quality.py --problem synthetic [--trials 60] [--engines bayesian random]

`trained_table.py` makes the table; `replay.py` says how a search is answered by it, what is counted and whom that
favours. Volumes are shares of that of the whole table, whose reference point is the one a study with all of it would
have. Beside the engines of a study file stand `bayesian+rungs` (successive halving by three from the first epoch),
`bayesian+warm` (begun from 60 uniform trials of the next task) and `recipe` (`recipe.py`, the original AutoPEFT's).
With `--problem synthetic` the engines search made-up problems without epochs (`synthetic_problem.py`); volumes are
absolute there, and shares those of what the median random search has at its end.

For every task and engine: in how many trials and how many epochs half of the searches reached 95 % of the table's
volume. Rows go to `benchmarks/results/search_quality.jsonl`, pictures to `benchmarks/results/search_quality-*.png`.
Engines that think for seconds (`gp`, `recipe`) get `--slow-seeds`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, write_rows
from engines import ENGINES, RANDOM, RECIPE, RUNGS, SEARCHERS, SLOW, WARM, Outcome, Synthetic, replayed
from measured_table import MeasuredTable
from replay import Problem

from autopeft.objectives.pareto import Array
from autopeft.search.surrogate import one_thread

SHARES = (0.9, 0.95, 0.99)
"""Of the table's volume."""


def main() -> None:
    options = read_arguments()
    rows: list[dict[str, Any]] = []
    with one_thread():
        for task, run, about in worlds(options):
            found = {engine: searched(engine, run, options) for engine in options.engines if fits(engine, task)}
            rows += [about | row for row in rows_of(task, found, options)]
            print(table([row for row in rows if row["task"] == task]), flush=True)
            print(draw(task, found), flush=True)
    print(write_rows("search_quality", rows))


Run = Callable[[str, int], Outcome]
"""A search by engine and seed."""


def worlds(options: argparse.Namespace) -> list[tuple[str, Run, dict[str, Any]]]:
    """Every problem: its name, how a search of it is run, and what is noted of it."""
    if options.problem == "synthetic":
        made = Synthetic()

        def on_made(engine: str, seed: int) -> Outcome:
            return made.search(engine, seed=seed, n_trials=options.trials)

        return [("synthetic", on_made, {"benchmark": "search_quality", "problem": "synthetic"})]
    measured = MeasuredTable.read(options.table)
    space = measured.space()
    problems = {task: Problem.of(measured, task, space=space) for task in options.tasks or measured.tasks}
    names = list(problems)

    def on_table(task: str, engine: str, seed: int) -> Outcome:
        other = problems[names[(names.index(task) + 1) % len(names)]] if engine == WARM else None
        return replayed(engine, problems[task], seed=seed, n_trials=options.trials, source=other)

    return [
        (task, lambda engine, seed, task=task: on_table(task, engine, seed), noted(problems[task])) for task in names
    ]


def noted(problem: Problem) -> dict[str, Any]:
    return {
        "benchmark": "search_quality",
        "problem": "table",
        "configurations": len(problem.configurations),
        "trainings": sum(len(rows) for rows in problem.rows),
        "epochs_a_trial": problem.epochs,
        "table_volume": problem.best,
        "reference": [problem.objectives[0].from_loss(float(problem.reference[0])), float(problem.reference[1])],
    }


def fits(engine: str, task: str) -> bool:
    return task != "synthetic" or engine in SEARCHERS or engine == RECIPE


def searched(engine: str, run: Run, options: argparse.Namespace) -> list[Outcome]:
    seeds = options.slow_seeds if engine in SLOW else options.seeds
    found: list[Outcome] = []
    for seed in range(seeds):
        found.append(run(engine, seed))
        print(f"{engine}: search {seed + 1} of {seeds}", file=sys.stderr, flush=True)
    return found


def rows_of(task: str, found: Mapping[str, Sequence[Outcome]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row an engine: quartiles by trials and by epochs, and what it takes to reach a share of the volume."""
    synthetic = task == "synthetic"
    whole = (
        float(np.median([one.curves.by_trial[-1] for one in found[RANDOM]])) if synthetic and RANDOM in found else 1.0
    )
    rows: list[dict[str, Any]] = []
    for engine, outcomes in found.items():
        by_trial = together([one.curves.by_trial for one in outcomes])
        by_epoch = together([one.curves.by_epoch for one in outcomes])
        rows.append(
            {
                "task": task,
                "engine": engine,
                "seeds": len(outcomes),
                "trials": options.trials,
                "volume_by_trial": quartiles(by_trial[:, : 3 * options.trials]),
                "volume_by_epoch": quartiles(by_epoch[:, : 9 * options.trials]),
                "trials_to": {str(share): reached(by_trial, share * whole) for share in SHARES},
                "epochs_to": {str(share): reached(by_epoch, share * whole) for share in SHARES},
                "suggestion_cpu_seconds": round(float(np.mean([one.seconds for one in outcomes])), 3),
            }
        )
    return rows


def together(curves: Sequence[Array]) -> Array:
    """`[s, n]` curves of unequal lengths, each going on at its end."""
    longest = max(len(curve) for curve in curves)
    return np.array([np.pad(curve, (0, longest - len(curve)), mode="edge") for curve in curves])


def quartiles(curves: Array) -> list[list[float]]:
    """`[n]` of (lower quartile, median, upper quartile)."""
    return np.percentile(curves, (25, 50, 75), axis=0).T.round(4).tolist()


def reached(curves: Array, volume: float) -> list[float | None]:
    """By when a quarter, half and three quarters of the searches had `volume`; None for later than they went."""
    first = np.where((curves >= volume).any(axis=1), (curves >= volume).argmax(axis=1) + 1.0, np.inf)
    found = np.percentile(first, (25, 50, 75), method="higher")
    return [float(one) if np.isfinite(one) else None for one in found]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line an engine; how many times as many trials as it random and the recipe took."""
    by_engine = {row["engine"]: row for row in rows}
    head = f"{'median over searches':18}{'seeds':>6}{'volume':>9}{'trials to 95 %':>16}{'epochs to 95 %':>16}"
    lines = [rows[0]["task"], head + f"{'of random':>11}{'of recipe':>11}{'s a suggestion':>16}"]
    for row in rows:
        trials, epochs = row["trials_to"]["0.95"][1], row["epochs_to"]["0.95"][1]
        volume = row["volume_by_trial"][min(row["trials"], len(row["volume_by_trial"])) - 1][1]
        shares = [share(trials, by_engine.get(other)) for other in (RANDOM, RECIPE)]
        told = [f"{one:16.0f}" if one else f"{'not':>16}" for one in (trials, epochs)]
        lines.append(
            f"{row['engine']:18}{row['seeds']:>8}{volume:>9.3f}{told[0]}{told[1]}{shares[0]:>11}{shares[1]:>11}"
            f"{row['suggestion_cpu_seconds']:>16.2f}"
        )
    return "\n".join(lines)


def share(trials: float | None, other: Mapping[str, Any] | None) -> str:
    """Its trials as a share of another engine's."""
    against = other["trials_to"]["0.95"][1] if other else None
    return f"{trials / against:.2f}" if trials and against else "-"


def draw(task: str, found: Mapping[str, Sequence[Outcome]]) -> Path:
    """Medians with quartiles, by trials and by epochs, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    for axes, by, attribute in zip(
        figure.subplots(1, 2), ("trials", "epochs trained"), ("by_trial", "by_epoch"), strict=True
    ):
        widest = max(
            len(getattr(one.curves, attribute))
            for name, runs in found.items()
            if name not in (RANDOM, RUNGS)
            for one in runs
        )
        for engine, runs in found.items():
            low, middle, high = np.percentile(
                together([getattr(one.curves, attribute) for one in runs]), (25, 50, 75), axis=0
            )
            count = np.arange(1, len(middle) + 1)[:widest]
            (line,) = axes.plot(count, middle[:widest], label=engine)
            axes.fill_between(count, low[:widest], high[:widest], alpha=0.1, color=line.get_color())
        axes.set(xlabel=by, ylabel="hypervolume", title=f"{task}: median and quartiles")
    figure.axes[0].legend()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"search_quality-{task}.png"
    figure.savefig(path, dpi=100)
    return path


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=("table", "synthetic"), default="table")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks" / "tables" / "minilm.npz")
    parser.add_argument("--tasks", nargs="+", help="of the table; all when left out")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--slow-seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    return parser.parse_args()


if __name__ == "__main__":
    main()
