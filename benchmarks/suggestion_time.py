"""Seconds that a search engine takes for suggestions, by observations and dimensions.

    python benchmarks/suggestion_time.py [--repeats 5] [--engines bayesian]
                                                            appends to benchmarks/results/suggestion_time.jsonl

One suggestion, a batch of sixteen after 200 observations, and one after 500 observations in 100 dimensions, the last
two without `gp`, which takes minutes there. Every repeat asks after a history from another seed, so that nothing is
remembered from the one before (within one study every tenth suggestion or so has to fit anew). Libraries are loaded by
a warm-up that is not counted. Suggestions are checked to be valid and new.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from common import made_up_trial, write_rows

from autopeft.objectives.objective import resolve_objectives
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.table import SEARCHERS, make_searcher
from autopeft.search.trial import History, Trial
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.model_shape import ModelShape, Role, Site
from autopeft.spaces.space import SearchSpace

WIDTH = 768
CASES = {
    "autopeft-12 (15 dimensions)": ("autopeft", 12),
    "lora-per-layer-28 (29 dimensions)": ("lora-per-layer", 28),
    "lora-per-layer-80 (81 dimensions)": ("lora-per-layer", 80),
    "lora-per-layer-99 (100 dimensions)": ("lora-per-layer", 99),
}
COUNTS = (50, 200)
BATCH, LARGE = ("lora-per-layer-28 (29 dimensions)", 200, 16), ("lora-per-layer-99 (100 dimensions)", 500, 1)
"""Case, observations and suggestions at once."""
MINUTES = ("gp",)
"""Engines that take so long for these."""


def encoder(n_layers: int) -> ModelShape:
    roles = (Role.QUERY, Role.KEY, Role.VALUE)
    square = [Site(name=f"attention.self.{r.value}", d_in=WIDTH, d_out=WIDTH, bias=True, role=r) for r in roles]
    up = Site(name="intermediate.dense", d_in=WIDTH, d_out=4 * WIDTH, bias=True, role=Role.MLP_UP)
    down = Site(name="output.dense", d_in=4 * WIDTH, d_out=WIDTH, bias=True, role=Role.MLP_DOWN)
    sites = (*square, up, down)
    return ModelShape(
        family="bert",
        layer_path="encoder.layer",
        layers=(sites,) * n_layers,
        hidden_size=WIDTH,
        n_heads=12,
        n_kv_heads=12,
        head_dim=64,
        vocabulary_size=30_000,
        base_parameters=n_layers * 12 * WIDTH**2,
        embedding_parameters=30_000 * WIDTH,
        causal=False,
    )


def setup(preset: str, n_layers: int, *, seed: int, n: int) -> tuple[SearchProblem, History]:
    """A problem with three objectives and a history of `n` uniform draws with noisy outcomes."""
    shape = encoder(n_layers)

    def memory(configuration: Configuration) -> float:
        return 1e9 + 2e7 * (n_layers - min(configuration.adapted_layers))

    space = SearchSpace.bind(SpaceDefinition.from_mapping(preset), shape, quantities={"memory": memory})
    objectives = resolve_objectives(("accuracy", "parameters", "memory"), metric="accuracy")
    rng = np.random.default_rng([seed, n])
    drawn = {one.id: one for one in space.sample(rng, n + n // 4)}
    trials = [_trial(number, one, space, rng) for number, one in enumerate(list(drawn.values())[:n])]
    problem = SearchProblem(space=space, objectives=objectives, seed=seed, n_trials=4 * n)
    return problem, History(trials=tuple(trials))


def _trial(number: int, configuration: Configuration, space: SearchSpace, rng: np.random.Generator) -> Trial:
    parameters = space.parameters(configuration)
    depth = float(np.mean(configuration.adapted_layers)) / space.shape.n_layers
    accuracy = 0.5 + 0.04 * float(np.log10(1 + parameters)) + 0.1 * depth + 0.01 * float(rng.standard_normal())
    return made_up_trial(number, configuration, space, accuracy=accuracy, memory_ratio=1.05)


def timed(searcher: AbstractSearcher, problem: SearchProblem, history: History, batch: int) -> tuple[float, float]:
    """Wall and CPU seconds of `batch` suggestions, after checking that they are valid, new and distinct."""
    wall, cpu = time.perf_counter(), time.process_time()
    suggestions = searcher.ask(history, batch)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert all(map(problem.space.contains, suggestions))
    assert len({one.id for one in suggestions} - history.ids) == batch
    return wall, cpu


def rows(engine: str, case: str, n: int, batch: int, *, repeats: int) -> list[dict[str, object]]:
    """Two rows, wall-clock and CPU seconds, over `repeats` fresh problems, a warm-up left out."""
    preset, n_layers = CASES[case]
    warm, history = setup(preset, n_layers, seed=1000, n=20)
    timed(make_searcher(engine, warm), warm, history, 1)
    values: list[tuple[float, float]] = []
    for seed in range(repeats):
        problem, history = setup(preset, n_layers, seed=seed, n=n)
        values.append(timed(make_searcher(engine, problem), problem, history, batch))
    result: list[dict[str, object]] = []
    for place, what in enumerate(("wall", "cpu")):
        p20, p50, p80 = np.quantile([value[place] for value in values], [0.2, 0.5, 0.8])
        row = {"benchmark": "suggestion_time", "engine": engine, "case": case, "observations": n, "clock": what}
        row["suggestions"] = batch
        result.append({**row, "unit": "s", "p20": p20, "p50": p50, "p80": p80, "repeats": repeats, "dtype": "float64"})
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Seconds a search engine takes for suggestions.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", nargs="+", choices=sorted(SEARCHERS), default=sorted(SEARCHERS))
    options = parser.parse_args(arguments)
    print(f"{'engine':10} {'case':34} {'n':>4} {'batch':>5} {'clock':5} {'p20':>8} {'p50':>8} {'p80':>8}")
    for engine in options.engines:
        for case, n, batch in cells(engine):
            found = rows(engine, case, n, batch, repeats=options.repeats)
            write_rows("suggestion_time", found)
            for row in found:
                print(
                    f"{engine:10} {case:34} {n:4} {batch:5} {row['clock']!s:5} "
                    f"{row['p20']:8.3f} {row['p50']:8.3f} {row['p80']:8.3f}",
                    flush=True,
                )


def cells(engine: str) -> list[tuple[str, int, int]]:
    """What an engine is timed on."""
    one = [(case, n, 1) for case in CASES if case != LARGE[0] for n in COUNTS]
    return one if engine in MINUTES else [*one, BATCH, LARGE]


if __name__ == "__main__":
    main()
