"""Hypervolume by trials and by training cost of every search engine, replayed on a table of real trainings.

    python benchmarks/search_quality.py [--table benchmarks/tables/minilm.npz] [--tasks trec sst2] [--seeds 20]
    python benchmarks/search_quality.py --problem synthetic [--trials 60] [--engines bayesian random]

All tasks of the table and the made-up problems, unless `--problem` names one of the two.

`trained_table.py` makes the table; `replay.py` says how a search is answered by it, what is counted and whom that
favours. Volumes are shares of that of the whole table, whose reference point is the one a study with all of it would
have. Beside the engines of a study file stand `bayesian+rungs` (successive halving by three from the first epoch),
`bayesian+warm` (begun from 60 uniform trials of the table's next task, where it has more than one), `bayesian+nearest`
(which does not know what rows there are), `recipe` (`recipe.py`, the original AutoPEFT's) and `recipe+nuts` (the same,
fully Bayesian, which needs the extra `bench` and is left out without it). `random` gets ten times as many seeds, which
cost nothing.
With `--problem synthetic` the engines search made-up problems without epochs (`synthetic_problem.py`); volumes are
absolute there, and 95 % are of what half of the random searches have at their end.

For every task and engine: in how many trials and how many epochs half of the searches reached 95 % of the table's
volume. A row goes to `benchmarks/results/search_quality.jsonl` when an engine is through; table and picture
(`benchmarks/results/search_quality-*.png`) are of the last row of each engine on the same problem; `--configurations`
goes back to a table as it was when it was smaller. Engines whose searches take a minute (`gp`, `recipe`, `recipe+nuts`
and `bayesian+rungs`) get `--slow-seeds`. Seconds a suggestion include what `recipe+nuts` compiles.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
from common import RESULTS, write_rows
from engines import ENGINES, NUTS, RANDOM, RECIPE, SLOW, WARM, Outcome, Synthetic, check_installed, replayed
from joblib import Parallel, delayed
from measured_table import table_parser
from replay import Problem

from autopeft.errors import MissingExtraError, SpecError
from autopeft.objectives.pareto import Array
from autopeft.search.surrogate import one_thread
from autopeft.search.table import SEARCHERS

SHARES = (0.9, 0.95, 0.99)
"""Of the table's volume."""


def main() -> None:
    options = read_arguments()
    try:
        engines, there = engines_of(options), worlds(options)
    except (MissingExtraError, SpecError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for world in there:
        for engine in engines:
            if world.fits(engine):
                row = world.about | row_of(world.task, engine, searched(engine, world.run, options), options)
                print(write_rows("search_quality", [row]), engine, row["trials_to"], flush=True)
            elif options.engines:
                print(f"left out: {engine} cannot be run on {world.task}", file=sys.stderr)
        rows = latest(world.task, world.about, options)
        if rows:
            print(table(rows), draw(world.task, rows), sep="\n", flush=True)


def engines_of(options: argparse.Namespace) -> Sequence[str]:
    """What is to be run: the engines that were named, else all whose packages are there; says which are left out.

    Raises:
        MissingExtraError: A package is absent that an engine needs which was named.
    """
    if options.draw:
        return []
    found: list[str] = []
    for engine in options.engines or ENGINES:
        try:
            check_installed(engine)
        except MissingExtraError as error:
            if options.engines:
                raise
            print(f"left out: {error}", file=sys.stderr)
        else:
            found.append(engine)
    return found


def latest(task: str, about: Mapping[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The last row of every engine that was run on this problem with as many trials, in the order of `ENGINES`."""
    path = RESULTS / "search_quality.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    same = {**about, "task": task, "trials": options.trials}
    rows = [row for row in map(json.loads, lines) if all(row.get(key) == value for key, value in same.items())]
    found = {row["engine"]: row for row in rows}
    ordered = [found[engine] for engine in ENGINES if engine in found]
    return ordered if about["problem"] == "table" else [beside(row, found.get(RANDOM)) for row in ordered]


def beside(row: dict[str, Any], random: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row of made-up problems with when its median reached a share of what the median random search has."""
    if random is None:
        return row
    told: dict[str, Any] = {}
    for key, by in (("trials_to", "volume_by_trial"), ("epochs_to", "volume_by_epoch")):
        medians, goal = np.array(row[by])[:, 1], random[by][-1][1]
        told[key] = {str(one): [None, reached(medians[None], one * goal)[1], None] for one in SHARES}
    return row | told


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Something that engines are compared on."""

    task: str
    run: Callable[[str, int], Outcome]
    """A search by engine and seed."""
    fits: Callable[[str], bool]
    """Whether an engine can be run on it."""
    about: dict[str, Any]
    """What is noted of it."""


def worlds(options: argparse.Namespace) -> list[World]:
    """Every problem that is asked for.

    Raises:
        SpecError: The table has no such task.
    """
    found = worlds_of_table(options) if options.problem != "synthetic" else []
    if options.problem == "table":
        return found
    made = Synthetic()

    def on_made(engine: str, seed: int) -> Outcome:
        return made.search(engine, seed=seed, n_trials=options.trials)

    about = {"benchmark": "search_quality", "problem": "synthetic", "epochs_a_trial": 1}
    made_up = World(
        task="synthetic", run=on_made, fits=lambda engine: engine in (*SEARCHERS, RECIPE, NUTS), about=about
    )
    return [*found, made_up]


def worlds_of_table(options: argparse.Namespace) -> list[World]:
    """The tasks of the table; says which they are."""
    problems = Problem.all_of(options.table, first=options.configurations)
    for task in options.tasks or ():
        if task not in problems:
            raise SpecError(f"--tasks: {options.table} has no task {task}", hint=f"it has {', '.join(problems)}")

    def on_table(task: str, engine: str, seed: int) -> Outcome:
        source = next_task(problems, task) if engine == WARM else None
        return replayed(engine, problems[task], seed=seed, n_trials=options.trials, source=source)

    def world(task: str) -> World:
        print(f"{task}: {len(problems[task].configurations)} configurations", file=sys.stderr, flush=True)
        return World(
            task=task,
            run=partial(on_table, task),
            fits=lambda engine: engine != WARM or len(problems) > 1,
            about=noted(problems[task]),
        )

    return [world(task) for task in options.tasks or problems]


def next_task(problems: Mapping[str, Problem], task: str) -> Problem:
    """The task after `task` in the table, whichever of them are searched."""
    names = list(problems)
    return problems[names[(names.index(task) + 1) % len(names)]]


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


def searched(engine: str, run: Callable[[str, int], Outcome], options: argparse.Namespace) -> list[Outcome]:
    seeds = options.slow_seeds if engine in SLOW else options.seeds * (10 if engine == RANDOM else 1)
    found: list[Outcome] = []
    ran = Parallel(options.jobs, return_as="generator")(delayed(alone)(run, engine, seed) for seed in range(seeds))
    for outcome in cast(Iterable[Outcome], ran):
        found.append(outcome)
        print(f"{engine}: search {len(found)} of {seeds}", file=sys.stderr, flush=True)
    return found


def alone(run: Callable[[str, int], Outcome], engine: str, seed: int) -> Outcome:
    """A search on one thread."""
    torch.set_num_threads(1)
    with one_thread():
        return run(engine, seed)


def row_of(task: str, engine: str, outcomes: Sequence[Outcome], options: argparse.Namespace) -> dict[str, Any]:
    """Quartiles by trials and by epochs, and what it takes to reach a share of the table's volume."""
    by_trial = together([one.curves.by_trial for one in outcomes])
    by_epoch = together([one.curves.by_epoch for one in outcomes])
    return {
        "task": task,
        "engine": engine,
        "seeds": len(outcomes),
        "trials": options.trials,
        "volume_by_trial": quartiles(by_trial[:, : 3 * options.trials]),
        "volume_by_epoch": quartiles(by_epoch[:, : 9 * options.trials]),
        "trials_to": {str(share): reached(by_trial, share) for share in SHARES},
        "epochs_to": {str(share): reached(by_epoch, share) for share in SHARES},
        "suggestion_cpu_seconds": round(float(np.mean([one.seconds for one in outcomes])), 3),
    }


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
    """A line an engine: what half of its searches needed, and that as a share of random's and of the recipe's."""
    by_engine = {row["engine"]: row for row in rows}
    names = ("seeds", "volume", "trials to 95 %", "of random's", "of recipe's", "epochs to 95 %", "of random's")
    widths = [max(len(name), 8) + 2 for name in (*names, "s a suggestion")]
    head = "".join(f"{name:>{width}}" for name, width in zip((*names, "s a suggestion"), widths, strict=True))
    lines = [f"{rows[0]['task']:16}{head}"]
    for row in rows:
        last = min(row["trials"], len(row["volume_by_trial"])) - 1
        cells = (
            str(row["seeds"]),
            f"{row['volume_by_trial'][last][1]:.3f}",
            number(row["trials_to"]["0.95"][1]),
            *(share(row, by_engine.get(other), "trials_to") for other in (RANDOM, RECIPE)),
            number(row["epochs_to"]["0.95"][1]),
            share(row, by_engine.get(RANDOM), "epochs_to"),
            f"{row['suggestion_cpu_seconds']:.2f}",
        )
        lines.append(
            f"{row['engine']:16}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        )
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "not" if value is None else f"{value:.0f}"


def share(row: Mapping[str, Any], other: Mapping[str, Any] | None, key: str) -> str:
    """What an engine needed as a share of what another one did."""
    own, theirs = row[key]["0.95"][1], other[key]["0.95"][1] if other else None
    return f"{own / theirs:.2f}" if own and theirs else "-"


def draw(task: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Medians with quartiles, by trials and by epochs, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    most = {"volume_by_trial": rows[0]["trials"], "volume_by_epoch": rows[0]["trials"] * rows[0]["epochs_a_trial"]}
    for axes, (key, end) in zip(figure.subplots(1, 2), most.items(), strict=True):
        for row in rows:
            low, middle, high = np.array(row[key][:end]).T
            (line,) = axes.plot(np.arange(1, len(middle) + 1), middle, label=row["engine"])
            axes.fill_between(np.arange(1, len(middle) + 1), low, high, alpha=0.1, color=line.get_color())
        by = "trials" if key == "volume_by_trial" else "epochs trained"
        axes.set(xlabel=by, ylabel="hypervolume", title=f"{task}: median and quartiles")
        axes.set_ylim(bottom=min(row[key][end // 10][0] for row in rows) - 0.02)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"search_quality-{task}.png"
    figure.savefig(path, dpi=100)
    return path


def read_arguments() -> argparse.Namespace:
    parser = table_parser(__doc__)
    parser.add_argument("--problem", choices=("table", "synthetic", "all"), default="all")
    parser.add_argument("--configurations", type=int, help="of the table, the first so many; all when left out")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--slow-seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time, each on one thread")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="all that are installed when left out")
    parser.add_argument("--draw", action="store_true", help="only print and draw what was run before")
    return parser.parse_args()


if __name__ == "__main__":
    main()
