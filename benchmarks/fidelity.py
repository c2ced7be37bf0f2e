"""Hypervolume by epochs trained, with rungs and without, on made-up learning curves whose ends are known.

    python benchmarks/fidelity.py [--seeds 20] [--curves smooth lottery] [--engines random bayesian]

The problem is that of `synthetic_problem.py`; a trial nears its end the faster the higher its learning rate, and each
at a pace of its own, so that curves cross. Every run may spend as many epochs as `--whole` trials to their end take.
Counted is the hypervolume of the noise-free values of the trials that were trained to their end. `smooth` curves are
measured with noise of 0.01; on `lottery` the first epochs say nothing of the end. These are no real trainings.

Prints medians and quartiles and appends rows to `benchmarks/results/fidelity.jsonl`.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from common import write_rows
from suggestion_time import encoder
from synthetic_problem import N_LAYERS, REFERENCE, SPACE, Truth, trial_of, truth_of

from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.objective import resolve_objectives
from autopeft.objectives.pareto import Array
from autopeft.search.scheduler import AbstractScheduler
from autopeft.search.schedulers import Fidelity, make_scheduler
from autopeft.search.searcher import SearchProblem
from autopeft.search.table import SEARCHERS, make_searcher
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace

CURVES = ("smooth", "lottery")
NOISE = 0.01
OBJECTIVES = resolve_objectives(("accuracy", "parameters"), metric="accuracy")
Curve = Callable[[Configuration, int, int], float]
"""Accuracy of a configuration as trial so and so after so many epochs, as measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=CURVES)
    parser.add_argument("--engines", nargs="+", choices=sorted(SEARCHERS), default=("random", "bayesian"))
    parser.add_argument("--whole", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=9)
    options = parser.parse_args()
    space = SearchSpace.bind(SpaceDefinition.from_mapping(SPACE), encoder(N_LAYERS))
    rows: list[dict[str, object]] = []
    for kind in options.curves:
        for engine in options.engines:
            for fidelity in (None, Fidelity()):
                began = time.process_time()
                seeds = range(options.seeds)
                found = [run(engine, fidelity, space, kind=kind, seed=seed, options=options) for seed in seeds]
                rows.append(row_of(kind, engine, fidelity, found, options))
                print(rows[-1]["quartiles"], kind, engine, fidelity, f"{time.process_time() - began:.0f} s", flush=True)
    print(table(rows))
    print(write_rows("fidelity", rows))


def run(
    engine: str, fidelity: Fidelity | None, space: SearchSpace, *, kind: str, seed: int, options: argparse.Namespace
) -> tuple[Array, int]:
    """`[epochs]` hypervolume after every epoch that was paid for, and how many trials were begun."""
    budget = options.whole * options.epochs
    n_trials = options.whole if fidelity is None else 3 * options.whole
    searcher = make_searcher(engine, SearchProblem(space=space, objectives=OBJECTIVES, seed=seed, n_trials=n_trials))
    scheduler = make_scheduler(fidelity, OBJECTIVES, epochs=options.epochs)
    truth = truth_of(space, seed)
    curve = curve_of(truth, space, kind=kind, seed=seed, epochs=options.epochs)
    trials: dict[int, Trial] = {}
    volumes: list[float] = []
    while len(volumes) < budget:
        again = scheduler.resumable(history_of(trials))
        number = again[0] if again else len(trials)
        if not again:
            chosen = searcher.ask(history_of(trials), 1)[0]
            fresh = trial_of(number, chosen, 0.0, space.parameters(chosen))
            trials[number] = replace(fresh, measurements=(), state=TrialState.RUNNING)
        else:
            trials[number] = replace(trials[number], state=TrialState.RUNNING, pruning=None)
        while trials[number].state is TrialState.RUNNING:
            trials[number] = trained(trials, number, scheduler, curve, space, epochs=options.epochs)
            volumes.append(volume(trials, truth, space))
    return np.array(volumes[:budget]), len(trials)


def trained(
    trials: dict[int, Trial],
    number: int,
    scheduler: AbstractScheduler,
    curve: Curve,
    space: SearchSpace,
    *,
    epochs: int,
) -> Trial:
    """The trial after one more epoch."""
    trial = trials[number]
    epoch = len(trial.measurements) + 1
    value = curve(trial.configuration, number, epoch)
    (measured,) = trial_of(number, trial.configuration, value, space.parameters(trial.configuration)).measurements
    measured = replace(measured, epoch=epoch)
    pruning = scheduler.judge(history_of(trials), number, measured) if epoch < epochs else None
    state = TrialState.COMPLETED if epoch == epochs else TrialState.PRUNED if pruning else TrialState.RUNNING
    return replace(trial, measurements=(*trial.measurements, measured), state=state, pruning=pruning)


def curve_of(truth: Truth, space: SearchSpace, *, kind: str, seed: int, epochs: int) -> Curve:
    """Exponential approach to the truth, at a pace that the learning rate and chance decide."""

    def curve(configuration: Configuration, number: int, epoch: int) -> float:
        rng = np.random.default_rng([seed, number, 3])
        rate = float(space.spell(configuration)["learning_rate"])  # type: ignore[arg-type]  # a number
        pace = (0.3 + 0.3 * (math.log10(rate) + 3.5)) * math.exp(0.2 * rng.standard_normal())
        share = (1 - math.exp(-pace * epoch)) / (1 - math.exp(-pace * epochs))
        noise = NOISE * float(rng.standard_normal(epochs)[epoch - 1])
        if kind == "lottery" and epoch < epochs / 2:
            return 0.5 + 0.2 * float(rng.random())
        return 0.5 + (truth(configuration) - 0.5) * share + noise

    return curve


def volume(trials: dict[int, Trial], truth: Truth, space: SearchSpace) -> float:
    done = [trial.configuration for trial in trials.values() if trial.state is TrialState.COMPLETED]
    losses = np.array([[1 - truth(one), space.parameters(one)] for one in done]).reshape(-1, 2)
    return hypervolume(losses / REFERENCE, np.ones(2)) if done else 0.0


def history_of(trials: dict[int, Trial]) -> History:
    return History(trials=tuple(trials[number] for number in sorted(trials)))


def row_of(
    kind: str, engine: str, fidelity: Fidelity | None, found: Sequence[tuple[Array, int]], options: argparse.Namespace
) -> dict[str, object]:
    curves = np.array([one for one, _ in found])
    budget = curves.shape[1]
    marks = (budget // 3, 2 * budget // 3, budget)
    return {
        "benchmark": "fidelity",
        "problem": kind,
        "engine": engine,
        "rungs": fidelity is not None,
        "seeds": options.seeds,
        "epochs_a_trial": options.epochs,
        "quartiles": {str(mark): np.percentile(curves[:, mark - 1], (25, 50, 75)).round(4).tolist() for mark in marks},
        "trials": float(np.median([count for _, count in found])),
        "final": curves[:, -1].round(4).tolist(),
    }


def table(rows: Sequence[dict[str, object]]) -> str:
    lines = [f"{'curves':9}{'engine':10}{'rungs':>7}{'trials':>8}  quartiles of hypervolume by epochs trained"]
    for row in rows:
        lines.append(f"{row['problem']:9}{row['engine']:10}{row['rungs']!s:>7}{row['trials']:>8}  {row['quartiles']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
