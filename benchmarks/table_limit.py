"""How soon a search could find a table's volume that knew everything but the row it is about to ask for.

    python benchmarks/table_limit.py [--trials 100]      appends to benchmarks/results/table_limit.jsonl

A process is fitted to the whole table; what it expects of each row from all others (leave-one-out) is what this search
believes, from its first trial on. It takes the row of largest expected hypervolume improvement, in closed form. What it
does not reach soon is not to be foreseen from configurations: the luck of single trainings, or what the process cannot
tell apart. No engine is meant to be better, though one may be by chance.
"""

import numpy as np
from common import write_rows
from measured_table import table_parser
from replay import Problem
from search_quality import SHARES

from autopeft.objectives.pareto import Array
from autopeft.search.acquisition import FreeRegion
from autopeft.search.ranking import left_out
from autopeft.search.surrogate import fit, one_thread


def main() -> None:
    parser = table_parser(__doc__)
    parser.add_argument("--trials", type=int, default=100)
    options = parser.parse_args()
    for task, problem in Problem.all_of(options.table, options.tasks).items():
        with one_thread():
            volumes = searched(problem, options.trials)
        reached = {str(share): trials_to(volumes, share) for share in SHARES}
        print(f"{task:6} configurations {len(problem.configurations):4}  trials to a share of the volume: {reached}")
        about = {"benchmark": "table_limit", "task": task, "configurations": len(problem.configurations)}
        write_rows("table_limit", [{**about, "trials": options.trials, "trials_to": reached}])


def searched(problem: Problem, n: int) -> Array:
    """`[n]` shares of the table's volume after each trial."""
    x = np.array([problem.space.features(one) for one in problem.configurations])
    losses = problem.losses
    process = fit(x, losses[:, 0], seed=0, typical=problem.space.lengthscales)
    means, deviations = left_out(process.each)
    origin, scale = losses.min(axis=0), problem.reference - losses.min(axis=0)
    means, deviations = (means - origin[0]) / scale[0], deviations / scale[0]
    scaled = (losses - origin) / scale
    done: list[int] = []
    volumes: list[float] = []
    for _ in range(n):
        left = np.setdiff1d(np.arange(len(losses)), done)
        region = FreeRegion.of(scaled[done].reshape(-1, 2), np.ones(2))
        gains = region.averaged_improvement(means[:, left], deviations[:, left], costs=scaled[left, 1:])
        done.append(int(left[np.argmax(gains)]))
        volumes.append(problem.volume([problem.configurations[place] for place in done]))
    return np.array(volumes)


def trials_to(volumes: Array, share: float) -> int | None:
    return int((volumes >= share).argmax()) + 1 if (volumes >= share).any() else None


if __name__ == "__main__":
    main()
