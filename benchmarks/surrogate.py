"""What averaging over the hyper-parameters is worth: predictions of new points, averaged and by the likeliest ones.

    python benchmarks/surrogate.py [--seeds 20]      appends to benchmarks/results/surrogate.jsonl

Synthetic functions of the first inputs of [0, 1]^d, noise of 15 % of their spread. For each process: root mean squared
error over the spread, share of new points inside the 90 % interval, mean log density of the truth (in units of the
spread; higher is better), and CPU seconds of a fit.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from common import write_rows
from scipy.stats import norm

from autopeft.objectives.pareto import Array
from autopeft.search import surrogate
from autopeft.search.hyperparameters import likeliest
from autopeft.search.surrogate import Averaged, condition, fit, one_thread

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "sum of four sines": lambda x: np.sin(3 * x[:, :4]).sum(axis=1),
    "product of four": lambda x: np.prod(1 + 0.5 * np.sin(4 * x[:, :4]), axis=1),
    "all inputs a little": lambda x: np.log1p(x.sum(axis=1)) + 0.3 * np.sqrt(x[:, 0]) - 0.2 * (x[:, 1] - 0.5) ** 2,
}
SIZES = ((16, 10), (30, 24), (100, 24), (200, 30))
NEW = 200
COVER = 1.645


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    print(f"{'n':>4}{'d':>4}  {'function':22}{'process':10}{'error':>7}{'cover':>7}{'density':>9}{'seconds':>9}")
    with one_thread():
        for n, d in SIZES:
            for name, function in FUNCTIONS.items():
                found = [compared(function, n=n, d=d, seed=seed) for seed in range(options.seeds)]
                for kind in ("likeliest", "averaged"):
                    error, cover, density, seconds = np.mean([one[kind] for one in found], axis=0)
                    rows.append(
                        {
                            "benchmark": "surrogate",
                            "observations": n,
                            "dimensions": d,
                            "function": name,
                            "process": kind,
                            "seeds": options.seeds,
                            "error": round(float(error), 4),
                            "coverage": round(float(cover), 4),
                            "log_density": round(float(density), 4),
                            "seconds": round(float(seconds), 4),
                        }
                    )
                    print(f"{n:4}{d:4}  {name:22}{kind:10}{error:7.3f}{cover:7.2f}{density:9.3f}{seconds:9.3f}")
    print(write_rows("surrogate", rows))


def compared(function: Callable[[Array], Array], *, n: int, d: int, seed: int) -> dict[str, tuple[float, ...]]:
    rng = np.random.default_rng([seed, n, d])
    x, new = rng.random((n, d)), rng.random((NEW, d))
    truth, seen = function(new), function(x)
    y = seen + 0.15 * seen.std() * rng.standard_normal(n)
    surrogate._remembered.cache_clear()
    began = time.process_time()
    averaged = fit(x, y, seed=seed)
    took = time.process_time() - began
    first, began = averaged.each[0], time.process_time()
    alone = condition(likeliest(x, first.z), x, first.z, location=first.location, scale=first.scale)
    single = Averaged(each=(alone,)), time.process_time() - began
    return {"averaged": scored(averaged, new, truth, took), "likeliest": scored(single[0], new, truth, single[1])}


def scored(process: Averaged, new: Array, truth: Array, seconds: float) -> tuple[float, ...]:
    means, deviations = process.posteriors(new)
    mean, deviation = process.posterior(new)
    density = np.log(norm.pdf(truth, means, deviations).mean(axis=0)).mean() + np.log(truth.std())
    error = np.sqrt(np.mean((mean - truth) ** 2)) / truth.std()
    return float(error), float(np.mean(np.abs(mean - truth) < COVER * deviation)), float(density), seconds


if __name__ == "__main__":
    main()
