"""What scores of the layers are worth to a search: its hypervolume beside one that began without, in synthetic tasks.

    python benchmarks/layer_prior.py [--seeds 20] [--trials 18]      appends to benchmarks/results/layer_prior.jsonl

The tasks are those of `warm_start.py`, formulas in which layers are worth unequally much. A prior is a score for every
layer: the worth itself (`aligned`), that of a task which shares half with this one (`half`), that of another task
(`unrelated`), or one over the worth (`misleading`). Every seed is a task, searched without and with each of them, with
the same search seed and noise. Volumes are of the metrics without noise, from one reference for all searches of a task:
that of 400 uniform configurations.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from common import spread, write_rows
from warm_start import OBJECTIVES, Task, bound_space, losses_of, reached, searched, show, volumes

from autopeft.objectives.reference import reference_point
from autopeft.search.searcher import SearchProblem
from autopeft.search.surrogate import one_thread
from autopeft.spaces.layer_prior import LayerScores

HALF = 0.7
"""How much of the task a half-related one does not share, as in `warm_start.py`."""


def priors(seed: int, target: Task, other: Task) -> Mapping[str, LayerScores]:
    """The scores that a search of `target` is given."""
    worth, half, elsewhere = (np.exp(0.8 * task.depth) for task in (target, target.beside(other, HALF), other))
    told = {"aligned": worth, "half": half, "unrelated": elsewhere, "misleading": 1 / worth}
    return {
        name: LayerScores(
            score="made up", rows=0, seed=seed, layers=tuple(map(float, scores)), sites=({},) * len(scores)
        )
        for name, scores in told.items()
    }


def one_target(seed: int, *, n_trials: int) -> dict[str, np.ndarray]:
    """By prior (`none` among them): volume after each trial, over that of the last trial without prior."""
    space, rng = bound_space(), np.random.default_rng([seed, 0])
    target, other = Task.drawn(rng), Task.drawn(rng)
    sample = losses_of(space.sample(np.random.default_rng([seed, 3]), 400), target, space)
    corner = reference_point(sample, OBJECTIVES)
    plain = SearchProblem(space=space, objectives=OBJECTIVES, seed=seed, n_trials=n_trials)
    starts = {"none": plain} | {
        name: replace(plain, layer_weights=scores.weights) for name, scores in priors(seed, target, other).items()
    }
    curves = {
        name: volumes(searched(problem, target, seed=seed), target, space, corner) for name, problem in starts.items()
    }
    return {name: curve / curves["none"][-1] for name, curve in curves.items()}


def rows(curves: Sequence[Mapping[str, np.ndarray]], *, n_trials: int) -> Iterator[Mapping[str, object]]:
    """For every prior: volume over that without one, trials to reach that, and how often it ended lower."""
    for prior in curves[0]:
        about = {"benchmark": "layer_prior", "prior": prior, "trials": n_trials, "seeds": len(curves)}
        for n in (6, n_trials // 2, n_trials):
            values = np.array([row[prior][n - 1] for row in curves])
            beside = values - np.array([row["none"][n - 1] for row in curves])
            told = {"of": "volume over that of the last trial without prior", "after": n, "unit": "1"}
            error = float(beside.std(ddof=1) / len(beside) ** 0.5)
            more = {"mean": float(values.mean()), "least": float(values.min()), "lower": int((beside < 0).sum())}
            yield (
                about
                | told
                | spread(values.tolist())
                | more
                | {
                    "difference": float(beside.mean()),
                    "standard_error": error,
                }
            )
        values = [float(reached(row[prior], 1.0)) for row in curves]
        told = {"of": "trials to the last volume without prior", "unit": "trials"}
        yield about | told | spread(values) | {"mean": float(np.mean(values)), "never": values.count(n_trials + 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="What scores of the layers are worth to a search.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=18)
    options = parser.parse_args()
    with one_thread():
        found = list(
            rows([one_target(seed, n_trials=options.trials) for seed in range(options.seeds)], n_trials=options.trials)
        )
    write_rows("layer_prior", found)
    show(found, ("prior", "of", "after"))


if __name__ == "__main__":
    main()
