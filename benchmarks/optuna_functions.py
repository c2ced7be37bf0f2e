"""The Optuna sampler beside Optuna's own, on test functions with several objectives and nothing of fine-tuning in them.

    python benchmarks/optuna_functions.py [--studies 6] [--trials 40] [--functions zdt1] [--samplers gp]

BoTorch's functions, all objectives minimised, without noise; the hypervolume up to BoTorch's reference points, as a
share of the largest there is. Means over studies after some trials; every sampler draws its first ten at random. Rows
go to `benchmarks/results/optuna_functions.jsonl` when a sampler is through with a function.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import optuna
import torch
from botorch.test_functions.multi_objective import DTLZ2, ZDT1, BraninCurrin, MultiObjectiveTestProblem
from common import write_rows
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection

from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.pareto import Array
from autopeft.search.optuna_log import quiet_optuna
from autopeft.search.optuna_sampler import AutoPeftSampler

FUNCTIONS: Mapping[str, Callable[[], MultiObjectiveTestProblem]] = {
    "branin-currin": BraninCurrin,
    "dtlz2": lambda: DTLZ2(dim=6, num_objectives=2),
    "zdt1": lambda: ZDT1(dim=8),
}
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=10),
    "tpe": lambda seed: TPESampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    "autopeft": lambda seed: AutoPeftSampler(seed=seed),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=6)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=[*FUNCTIONS])
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=[*SAMPLERS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    after = [n for n in (15, 20, 30, 40, 60) if n <= options.trials]
    print(f"{'function':15}{'sampler':10}" + "".join(f"{n:>8}" for n in after) + f"{'s a trial':>11}")
    for function in options.functions:
        for sampler in options.samplers:
            began = time.process_time()
            seeds = range(options.studies)
            curves = np.array([studied(function, sampler, seed=seed, n=options.trials) for seed in seeds])
            seconds = (time.process_time() - began) / curves.size
            means = curves.mean(axis=0).round(4).tolist()
            about = {"benchmark": "optuna_functions", "function": function, "sampler": sampler}
            row = {**about, "studies": options.studies, "volume_by_trial": means, "cpu_seconds_a_trial": seconds}
            write_rows("optuna_functions", [row])
            print(f"{function:15}{sampler:10}" + "".join(f"{means[n - 1]:8.3f}" for n in after) + f"{seconds:11.2f}")


def studied(function: str, sampler: str, *, seed: int, n: int) -> Array:
    """`[n]` shares of the largest volume after each trial of a study."""
    problem = FUNCTIONS[function]()
    low, high = cast(torch.Tensor, problem.bounds).tolist()

    def objective(trial: optuna.Trial) -> list[float]:
        ends = enumerate(zip(low, high, strict=True))
        point = [trial.suggest_float(f"x{place}", start, end) for place, (start, end) in ends]
        return problem.evaluate_true(torch.tensor([point], dtype=torch.float64))[0].tolist()

    with quiet_optuna():
        study = optuna.create_study(
            directions=[StudyDirection.MINIMIZE] * problem.num_objectives, sampler=SAMPLERS[sampler](seed)
        )
        study.optimize(objective, n_trials=n)
    losses = np.array([trial.values for trial in study.trials])
    reference = np.abs(cast(torch.Tensor, problem.ref_point).numpy())
    return np.array([hypervolume(losses[:k], reference) for k in range(1, n + 1)]) / problem.max_hv


if __name__ == "__main__":
    main()
