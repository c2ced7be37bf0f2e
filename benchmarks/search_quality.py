"""Hypervolume by trials of every search engine, on made-up problems whose truth is known.

    python benchmarks/search_quality.py [--seeds 20] [--trials 60] [--engines bayesian random tpe]

The space is rich (a bit and a LoRA rank a layer of twelve, targets, serial adapters, learning rate). Accuracy grows
with what is adapted, more in some layers than in others (which ones, the seed decides), less with every further
parameter, and has its best learning rate, which falls as sizes grow. An engine sees accuracy with noise of 0.01 and
parameters exactly. Counted is the hypervolume of the noise-free values of what it tried, in accuracy from 0.5 and
parameters to three million. These are no real trainings: what holds here need not hold on a task.

Prints medians and quartiles and, per engine, how many trials reach what random search has at the end; appends rows to
`benchmarks/results/search_quality.jsonl` and draws `benchmarks/results/search_quality.png`.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from common import RESULTS, write_rows
from suggestion_time import encoder

from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import resolve_objectives
from autopeft.objectives.pareto import Array
from autopeft.search.searcher import SearchProblem
from autopeft.search.table import SEARCHERS, make_searcher
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace

N_LAYERS = 12
SPACE = {
    "layers": "subset",
    "serial_adapter": {"bottleneck": "choice(0, 4, 16, 64)"},
    "lora": {"rank": "per_layer(choice(0, 2, 8, 32))", "targets": "subset(query, key, value)"},
    "learning_rate": "log(3e-4, 1e-2)",
}
NOISE = 0.01
REFERENCE = np.array([0.5, 3e6])
"""Error and parameters."""
Truth = Callable[[Configuration], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--engines", nargs="+", choices=sorted(SEARCHERS), default=sorted(SEARCHERS))
    options = parser.parse_args()
    space = SearchSpace.bind(SpaceDefinition.from_mapping(SPACE), encoder(N_LAYERS))
    curves: dict[str, Array] = {}
    rows: list[dict[str, object]] = []
    for engine in options.engines:
        found = [searched(engine, space, seed=seed, n_trials=options.trials) for seed in range(options.seeds)]
        curves[engine] = np.array([curve for curve, _ in found])
        seconds = float(np.mean([spent for _, spent in found]))
        rows.append(row_of(engine, curves[engine], seconds, options))
        print(f"{engine}: {rows[-1]['final']} in {seconds:.2f} s a suggestion", flush=True)
    for row in rows:
        row["trials_to_random"] = reaches(curves[str(row["engine"])], curves.get("random"))
    print(table(rows))
    print(write_rows("search_quality", rows))
    print(draw(curves))


def searched(engine: str, space: SearchSpace, *, seed: int, n_trials: int) -> tuple[Array, float]:
    """`[n_trials]` hypervolume after every trial, and CPU seconds a suggestion."""
    objectives = resolve_objectives(("accuracy", "parameters"), metric="accuracy")
    problem = SearchProblem(space=space, objectives=objectives, seed=seed, n_trials=n_trials)
    searcher, truth, rng = make_searcher(engine, problem), truth_of(space, seed), np.random.default_rng([seed, 1])
    trials: list[Trial] = []
    losses = np.empty((n_trials, 2))
    spent = 0.0
    for number in range(n_trials):
        began = time.process_time()
        chosen = searcher.ask(History(trials=tuple(trials)), 1)[0]
        spent += time.process_time() - began
        accuracy, parameters = truth(chosen), space.parameters(chosen)
        losses[number] = 1 - accuracy, parameters
        trials.append(trial_of(number, chosen, accuracy + NOISE * float(rng.standard_normal()), parameters))
    volumes = [hypervolume(losses[: count + 1] / REFERENCE, np.ones(2)) for count in range(n_trials)]
    return np.array(volumes), spent / n_trials


def truth_of(space: SearchSpace, seed: int) -> Truth:
    """Accuracy without noise as a function of the configuration; another one for every seed."""
    rng = np.random.default_rng([seed, 77])
    weights = np.abs(rng.normal(size=N_LAYERS)) * np.linspace(0.3, 1.5, N_LAYERS)
    weights /= weights.sum()
    worth = {"query": rng.random(), "key": 0.3 * rng.random(), "value": 0.5 + rng.random()}
    best_rate = rng.uniform(-3.2, -2.2)

    def truth(configuration: Configuration) -> float:
        spelled = space.spell(configuration)
        capacity = np.array([capacity_of(spelled, configuration, layer, worth) for layer in range(N_LAYERS)])
        learned = float(weights @ (1 - np.exp(-1.5 * capacity)))
        off = np.log10(float(spelled["learning_rate"])) - best_rate
        off += 0.15 * (np.log10(1 + space.parameters(configuration)) - 5)
        return 0.5 + 0.4 * learned * float(np.exp(-0.5 * (off / 0.5) ** 2))

    return truth


def capacity_of(
    spelled: Mapping[str, object], configuration: Configuration, layer: int, worth: Mapping[str, float]
) -> float:
    """What one layer can learn: logarithmic in rank and bottleneck, weighed by target."""
    rank, bottleneck = (
        float(str(spelled.get(name) or 0)) for name in (f"lora.rank[{layer}]", "serial_adapter.bottleneck")
    )
    targets = str(spelled.get("lora.targets") or "")
    capacity = sum(value for name, value in worth.items() if name in targets) * np.log1p(rank) / np.log(33) / 2
    return float(capacity + 0.6 * (layer in configuration.adapted_layers) * np.log1p(bottleneck) / np.log(65))


def trial_of(number: int, configuration: Configuration, accuracy: float, parameters: int) -> Trial:
    measurement = Measurement(
        epoch=1,
        metrics={"accuracy": accuracy},
        train_loss=1.0,
        train_seconds=1.0,
        evaluation_seconds=0.1,
        tokens=1,
        peak_bytes=1,
        parameters=parameters,
    )
    return Trial(
        number=number,
        configuration=configuration,
        state=TrialState.COMPLETED,
        measurements=(measurement,),
        predicted={},
    )


def row_of(engine: str, curves: Array, seconds: float, options: argparse.Namespace) -> dict[str, object]:
    marks = sorted({count for count in (20, 30, 40, options.trials) if count <= options.trials})
    quartiles = {str(count): np.percentile(curves[:, count - 1], (25, 50, 75)).round(4).tolist() for count in marks}
    return {
        "benchmark": "search_quality",
        "problem": "synthetic",
        "engine": engine,
        "seeds": options.seeds,
        "trials": options.trials,
        "quartiles": quartiles,
        "final": quartiles[str(options.trials)][1],
        "suggestion_cpu_seconds": round(seconds, 3),
    }


def reaches(curves: Array, random: Array | None) -> int | None:
    """Trials after which the median run has 95 % of what the median random search has at its end."""
    if random is None:
        return None
    wanted = 0.95 * float(np.median(random[:, -1]))
    there = np.flatnonzero(np.median(curves, axis=0) >= wanted)
    return int(there[0]) + 1 if len(there) else None


def table(rows: Sequence[Mapping[str, object]]) -> str:
    lines = [f"{'engine':10}{'hypervolume':>13}{'trials to 95 % of random':>26}{'s a suggestion':>16}"]
    for row in sorted(rows, key=lambda row: -float(str(row["final"]))):
        lines.append(
            f"{row['engine']:10}{row['final']:>13}{row['trials_to_random']!s:>26}{row['suggestion_cpu_seconds']:>16}"
        )
    return "\n".join(lines)


def draw(curves: Mapping[str, Array]) -> Path:
    """Medians with quartiles, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    axes = figure.add_subplot()
    for engine, runs in curves.items():
        low, middle, high = np.percentile(runs, (25, 50, 75), axis=0)
        count = np.arange(1, len(middle) + 1)
        (line,) = axes.plot(count, middle, label=engine)
        axes.fill_between(count, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="trials", ylabel="hypervolume (noise-free)", title="Synthetic problems, median and quartiles")
    axes.legend()
    path = RESULTS / "search_quality.png"
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    main()
