"""What a surrogate gains that is told what to expect of learning rates and sizes, on tables of real trainings.

    python benchmarks/surrogate_tables.py [--seeds 12]      appends to benchmarks/results/surrogate_tables.jsonl

From a few configurations of a task, drawn at random and each seen from one seed, the process predicts all others. With
`SearchSpace.lengthscales` and without: Spearman's rank correlation of its means with what the table has (mean over
seeds), root mean squared error over the table's spread, and the share of the table inside 90 % intervals of mean and
noise. Then the task's best tenth by its means: by how many spreads it is better than the table's mean.
"""

import numpy as np
from common import write_rows
from measured_table import table_parser
from numpy.typing import NDArray
from replay import Problem
from scipy.stats import rankdata

from autopeft.search.surrogate import Averaged, fit, one_thread

COUNTS = (6, 10, 20, 40)
COVER = 1.645
COLUMNS = ("rank_correlation", "error", "coverage", "gain_of_best_tenth")


def main() -> None:
    parser = table_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    print(f"{'task':8}{'n':>4}  {'process':8}{'rank':>7}{'error':>7}{'cover':>7}{'gain':>7}")
    with one_thread():
        for task, problem in Problem.all_of(options.table, options.tasks).items():
            space = problem.space
            x = np.array([space.features(one) for one in problem.configurations])
            for n in COUNTS:
                for name, typical in (("told", space.lengthscales), ("untold", None)):
                    found = [scored(problem, x, n, seed=seed, typical=typical) for seed in range(options.seeds)]
                    means = dict(zip(COLUMNS, np.mean(found, axis=0).round(4).tolist(), strict=True))
                    about = {"benchmark": "surrogate_tables", "task": task, "observations": n, "process": name}
                    rows.append({**about, "seeds": options.seeds, **means})
                    print(f"{task:8}{n:4}  {name:8}" + "".join(f"{means[one]:7.2f}" for one in COLUMNS), flush=True)
    print(write_rows("surrogate_tables", rows))


def scored(
    problem: Problem, x: NDArray[np.float64], n: int, *, seed: int, typical: NDArray[np.float64] | None
) -> tuple[float, ...]:
    metric = problem.objectives[0]
    order = problem.order(seed)
    known, new = order[:n], order[n:]
    seen = [metric.to_loss(problem.seen(int(place), seed)[-1].value(metric.name)) for place in known]
    process = fit(x[known], np.array(seen), seed=seed, typical=typical)
    mean, deviation = process.posterior(x[new])
    truth, spread = problem.losses[new, 0], float(problem.losses[:, 0].std())
    inside = np.abs(mean - truth) < COVER * np.sqrt(deviation**2 + noise_of(process))
    best = truth[np.argsort(mean)[: len(new) // 10]].mean()
    error = float(np.sqrt(np.mean((mean - truth) ** 2))) / spread
    rank = float(np.corrcoef(rankdata(mean), rankdata(truth))[0, 1])
    return rank, error, float(inside.mean()), float(truth.mean() - best) / spread


def noise_of(process: Averaged) -> float:
    return float(np.mean([one.hyperparameters.noise * one.scale**2 for one in process.each]))


if __name__ == "__main__":
    main()
