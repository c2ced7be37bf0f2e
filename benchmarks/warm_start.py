"""What earlier studies are worth to a search: its hypervolume beside a cold one's, and the error of what it believes.

    python benchmarks/warm_start.py [--seeds 12] [--trials 18] [--error-seeds 6]

It prints a table and appends to benchmarks/results/warm_start.jsonl.

Tasks are formulas, drawn at random: what a layer is worth by depth, what a method's parameters are worth, and the best
learning rate. A source is a study of 60 uniform trials of a task that is near to the target's (`related`), half of it
(`half`), another one (`unrelated`), or the target's own with the metric reversed (`reversed`). Every seed is a target,
searched cold and from each source, with the same search seed and noise. Volumes are of the metrics without noise, from
one reference for all searches of a target: that of 400 uniform configurations.

The error is the root mean squared error of the belief's mean at configurations that nobody tried, over the spread of
the metric: of a cold process, one of the residual, one with the source as an input, and of their mixture.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from common import made_up_trial, spread, write_rows
from suggestion_time import encoder

from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.objective import resolve_objectives
from autopeft.objectives.parameters import count_parameters
from autopeft.objectives.reference import reference_point
from autopeft.search.belief import ordered
from autopeft.search.past_study import PastStudy
from autopeft.search.searcher import SearchProblem
from autopeft.search.source_model import SourceModel
from autopeft.search.surrogate import fit, one_thread
from autopeft.search.table import make_searcher
from autopeft.search.trial import History, Trial
from autopeft.search.warm_design import begun_from
from autopeft.search.warm_start import WarmProcess, transferred, with_sources
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace

SPACE: Mapping[str, object] = {
    "layers": "subset",
    "lora": {"rank": "per_layer(choice(0, 2, 8, 32))", "targets": "subset(query, value, mlp_up)"},
    "serial_adapter": {"bottleneck": "choice(0, 8, 32, 128)"},
    "learning_rate": "log(1e-4, 1e-2)",
}
N_LAYERS = 6
OBJECTIVES = resolve_objectives(("accuracy", "parameters", "memory"), metric="accuracy")
RELATIONS: Mapping[str, float] = {"related": 0.3, "half": 0.7, "unrelated": 1.0, "reversed": 0.0}
"""How much of the target's task the source's does not share."""
N_SOURCE = 60
OBSERVATIONS = (5, 10, 20)
NOISE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A metric as a formula of the configuration."""

    depth: np.ndarray
    """`[layers]` standard normal: what each layer is worth."""
    methods: np.ndarray
    """`[2]` standard normal: what a parameter of LoRA and of the adapter is worth."""
    rate: float
    """Standard normal: where the best learning rate is."""
    sign: float = 1.0

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Task":
        bend = rng.standard_normal(3)
        place = np.linspace(-1, 1, N_LAYERS)
        depth = bend[0] * place + bend[1] * (place**2 - 0.4) * 2 + 0.5 * rng.standard_normal(N_LAYERS)
        return cls(depth=depth, methods=rng.standard_normal(2), rate=float(rng.standard_normal()))

    def beside(self, other: "Task", share: float) -> "Task":
        """This task with `share` of `other` in it, as loud as before."""
        own = math.sqrt(1 - share**2)
        return Task(
            depth=own * self.depth + share * other.depth,
            methods=own * self.methods + share * other.methods,
            rate=own * self.rate + share * other.rate,
        )

    def metric(self, configuration: Configuration, space: SearchSpace) -> float:
        worth = np.exp(0.8 * self.depth)
        efficiency = {"lora": math.exp(0.7 * self.methods[0]), "serial_adapter": math.exp(0.7 * self.methods[1])}
        capacity = np.zeros(N_LAYERS)
        for (method, layer), count in count_parameters(configuration, space.shape).cells.items():
            capacity[layer] += efficiency[method] * count / 40_000
        reached = float(worth @ (1 - np.exp(-capacity)) / worth.sum())
        rate = float(dict(configuration.training)["learning_rate"])
        best = -3.0 + 0.5 * float(np.clip(self.rate, -1.8, 1.8))
        quality = reached * math.exp(-1.5 * (math.log10(rate) - best) ** 2)
        return 0.7 + self.sign * (0.4 * quality - 0.2)


def bound_space() -> SearchSpace:
    shape = encoder(N_LAYERS)

    def memory(configuration: Configuration) -> float:
        depth = N_LAYERS - min(configuration.adapted_layers)
        return 1e8 + 3e7 * depth + 16.0 * count_parameters(configuration, shape).total

    return SearchSpace.bind(SpaceDefinition.from_mapping(SPACE), shape, quantities={"memory": memory})


def trial(number: int, configuration: Configuration, task: Task, space: SearchSpace, *, noise: float) -> Trial:
    return made_up_trial(number, configuration, space, accuracy=task.metric(configuration, space) + noise)


def source(task: Task, space: SearchSpace, *, n: int, seed: int) -> PastStudy:
    """A study of `task` of `n` uniform trials, as the target sees it."""
    rng = np.random.default_rng([seed, 1])
    drawn = list({one.id: one for one in space.sample(rng, n)}.values())
    noise = NOISE * rng.standard_normal(len(drawn))
    history = History(trials=tuple(trial(i, one, task, space, noise=float(noise[i])) for i, one in enumerate(drawn)))
    learned, *others = ordered(OBJECTIVES)
    carried = {one: one for one in drawn}
    return PastStudy.of("source", history, carried, space=space, learned=learned, others=others)


def losses_of(configurations: Sequence[Configuration], task: Task, space: SearchSpace) -> np.ndarray:
    """`[n, 3]` without noise."""
    return np.array(
        [[-task.metric(one, space), space.parameters(one), space.predicted(one)["memory"]] for one in configurations],
        dtype=float,
    )


def searched(problem: SearchProblem, task: Task, *, seed: int) -> list[Configuration]:
    """The configurations that a search of `task` tries."""
    searcher, rng, history = make_searcher("bayesian", problem), np.random.default_rng([seed, 2]), History()
    while len(history) < problem.n_trials:
        (chosen,) = searcher.ask(history, 1)
        row = trial(len(history), chosen, task, problem.space, noise=NOISE * float(rng.standard_normal()))
        history = History(trials=(*history.trials, row))
    return [one.configuration for one in history]


def volumes(tried: Sequence[Configuration], task: Task, space: SearchSpace, corner: np.ndarray) -> np.ndarray:
    """`[n]` volume after each trial."""
    losses = losses_of(tried, task, space)
    return np.array([hypervolume(losses[: n + 1], corner) for n in range(len(losses))])


def one_target(seed: int, *, n_trials: int) -> dict[str, np.ndarray]:
    """By start (`cold` or a relation): volume after each trial, over that of the cold search's last."""
    space = bound_space()
    target, sources = target_and_sources(seed, space)
    sample = losses_of(space.sample(np.random.default_rng([seed, 3]), 400), target, space)
    corner = reference_point(sample, OBJECTIVES)
    cold = SearchProblem(space=space, objectives=OBJECTIVES, seed=seed, n_trials=n_trials)
    starts = {"cold": cold} | {name: replace(cold, past=(past,)) for name, past in sources.items()}
    curves = {
        name: volumes(searched(problem, target, seed=seed), target, space, corner) for name, problem in starts.items()
    }
    return {name: curve / curves["cold"][-1] for name, curve in curves.items()}


def target_and_sources(seed: int, space: SearchSpace) -> tuple[Task, dict[str, PastStudy]]:
    """A task, and a study of each related one."""
    rng = np.random.default_rng([seed, 0])
    target, other = Task.drawn(rng), Task.drawn(rng)
    tasks = {
        name: replace(target.beside(other, share), sign=-1.0 if name == "reversed" else 1.0)
        for name, share in RELATIONS.items()
    }
    return target, {name: source(task, space, n=N_SOURCE, seed=seed) for name, task in tasks.items()}


def search_rows(curves: Sequence[Mapping[str, np.ndarray]], *, n_trials: int) -> Iterator[Mapping[str, object]]:
    """For every start: volume over the cold search's last after some trials, and trials to reach that and 0.9 of it."""
    for start in curves[0]:
        about = {
            "benchmark": "warm_start",
            "start": start,
            "trials": n_trials,
            "seeds": len(curves),
            "dtype": "float64",
        }
        for n in (6, n_trials // 2, n_trials):
            values = [float(row[start][n - 1]) for row in curves]
            told = {"of": "volume over that of the cold search's last trial", "after": n, "unit": "1"}
            yield about | told | spread(values) | {"mean": float(np.mean(values)), "least": min(values)}
        for share in (0.9, 1.0):
            values = [float(reached(row[start], share)) for row in curves]
            told = {"of": f"trials to {share:.0%} of the cold search's last volume", "unit": "trials"}
            yield about | told | spread(values) | {"mean": float(np.mean(values)), "never": values.count(n_trials + 1)}


def reached(curve: np.ndarray, volume: float) -> int:
    """Trials after which there is `volume`; one more than there are when there never is."""
    there = np.flatnonzero(curve >= volume - 1e-12)
    return int(there[0]) + 1 if len(there) else len(curve) + 1


def errors(seed: int) -> dict[tuple[str, int], dict[str, float]]:
    """By relation and number of observations: each process's error, and the share of those that know the source."""
    space = bound_space()
    target, sources = target_and_sources(seed, space)
    unseen = space.sample(np.random.default_rng([seed, 4]), 150)
    at = np.array([space.features(one) for one in unseen])
    truth = losses_of(unseen, target, space)[:, 0]
    found: dict[tuple[str, int], dict[str, float]] = {}
    for relation, past in sources.items():
        model = SourceModel.of(past, space, seed=seed)
        begun = begun_from(SearchProblem(space=space, objectives=OBJECTIVES, seed=seed, n_trials=0), [model], n=2)
        for n in OBSERVATIONS:
            rng = np.random.default_rng([seed, n])
            tried = [*begun, *space.sample(rng, n)][:n]
            x = np.array([space.features(one) for one in tried])
            y = losses_of(tried, target, space)[:, 0] + NOISE * rng.standard_normal(n)
            found[relation, n] = _errors(x, y, model, at, truth, space.lengthscales, seed=seed)
    return found


def _errors(
    x: np.ndarray,
    y: np.ndarray,
    model: SourceModel,
    at: np.ndarray,
    truth: np.ndarray,
    typical: np.ndarray,
    *,
    seed: int,
) -> dict[str, float]:
    def error(mean: np.ndarray) -> float:
        return float(np.sqrt(((mean - truth) ** 2).mean()) / truth.std())

    cold = fit(x, y, seed=seed, typical=typical)
    mixed = with_sources(cold, x, y, [model], seed=seed, typical=typical)
    warm = transferred(x, y, [model], seed=seed, typical=typical)
    parts = {("input" if one.slopes is None else "residual"): one for one in warm}
    told = {name: error(one.posteriors(at)[0].mean(axis=0)) for name, one in parts.items()}
    before = error(cold.posterior(at)[0])
    share = mixed.share if isinstance(mixed, WarmProcess) else 0.0
    return {"cold": before, "residual": before} | told | {"mixture": error(mixed.posterior(at)[0]), "share": share}


def error_rows(found: Sequence[Mapping[tuple[str, int], Mapping[str, float]]]) -> Iterator[Mapping[str, object]]:
    for relation, n in found[0]:
        for process in found[0][relation, n]:
            values = [row[relation, n][process] for row in found]
            of = "share of the belief" if process == "share" else "error over the spread"
            about = {"benchmark": "warm_start", "start": relation, "observations": n, "process": process, "of": of}
            yield about | {"unit": "1", "seeds": len(found), "mean": float(np.mean(values))} | spread(values)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What earlier studies are worth to a search.")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--trials", type=int, default=18)
    parser.add_argument("--error-seeds", type=int, default=6)
    options = parser.parse_args(arguments)
    with one_thread():
        believed = list(error_rows([errors(seed) for seed in range(options.error_seeds)]))
        write_rows("warm_start", believed)
        show(believed, ("start", "observations", "process"))
        curves = [one_target(seed, n_trials=options.trials) for seed in range(options.seeds)]
        rows = list(search_rows(curves, n_trials=options.trials))
    write_rows("warm_start", rows)
    show(rows, ("start", "of", "after"))


def show(rows: Sequence[Mapping[str, object]], keys: Sequence[str]) -> None:
    for row in rows:
        text = " ".join(f"{row.get(key, '')!s:>12}" for key in keys)
        print(
            f"{text}  mean {row['mean']:.3f}  p20 {row['p20']:.3f}  p50 {row['p50']:.3f}  p80 {row['p80']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
