import logging
import subprocess
import sys

import numpy as np
import pytest

from autopeft.search.optuna_searcher import _GENERATION, GP, NSGA2, TPE, Kind, OptunaSearcher, population_size
from autopeft.search.table import make_searcher
from autopeft.search.trial import TrialState
from tests.search.support import history_of, problem_of, run, space_of

SPACE = space_of("mixed")


@pytest.mark.parametrize(("n_trials", "size"), [(8, 4), (40, 8), (1000, 50)])
def test_the_population_is_a_fifth_of_the_budget_within_bounds(n_trials: int, size: int) -> None:
    assert population_size(n_trials) == size


def test_generations_are_marked_as_optuna_reads_them() -> None:
    from optuna.samplers import NSGAIISampler

    assert NSGAIISampler._get_generation_key() == _GENERATION


def test_genes_carry_every_configuration_without_loss() -> None:
    searcher = OptunaSearcher(problem_of(SPACE), NSGA2)
    genes = searcher._genes()
    for one in SPACE.sample(np.random.default_rng(0), 50):
        assert searcher._decoded(searcher._encoded(one, genes)) == one


def test_children_take_after_the_front() -> None:
    problem = problem_of(SPACE, ["parameters"], n_trials=40)
    history = history_of(SPACE.sample(np.random.default_rng(0), 32), SPACE)
    children = OptunaSearcher(problem, NSGA2).ask(history, 8)
    everyone = [SPACE.parameters(trial.configuration) for trial in history]
    assert np.median([SPACE.parameters(one) for one in children]) < np.median(everyone)


@pytest.mark.parametrize(("kind", "n"), [(TPE, 8), (GP, 3)], ids=["tpe", "gp"])
def test_it_learns_what_the_objective_rewards(kind: Kind, n: int) -> None:
    problem = problem_of(SPACE, ["parameters"], n_trials=40)
    history = history_of(SPACE.sample(np.random.default_rng(0), 24), SPACE)
    proposed = OptunaSearcher(problem, kind).ask(history, n)
    everyone = [SPACE.parameters(trial.configuration) for trial in history]
    assert np.median([SPACE.parameters(one) for one in proposed]) < np.quantile(everyone, 0.3)


def test_before_its_first_trials_a_sampler_is_not_asked() -> None:
    history = history_of(SPACE.sample(np.random.default_rng(0), 9), SPACE)
    batches = [OptunaSearcher(problem_of(SPACE), kind).ask(history, 4) for kind in (TPE, GP)]
    assert batches[0] == batches[1] == make_searcher("random", problem_of(SPACE)).ask(history, 4)


def test_running_trials_run_in_optunas_eyes() -> None:
    history = history_of(
        SPACE.sample(np.random.default_rng(0), 12),
        SPACE,
        state=lambda number: TrialState.RUNNING if number % 3 == 0 else TrialState.COMPLETED,
    )
    searcher = OptunaSearcher(problem_of(SPACE), TPE)
    study = searcher._study(history, TPE.make(0, 40), searcher._genes())
    assert [trial.state.name for trial in study.trials].count("RUNNING") == 4
    assert len(study.trials) == 12


def test_it_gets_better_over_generations() -> None:
    problem = problem_of(SPACE, ["parameters"], n_trials=40)
    counts = [SPACE.parameters(trial.configuration) for trial in run(OptunaSearcher(problem, NSGA2), SPACE, n=40)]
    assert np.median(counts[-16:]) < 0.7 * np.median(counts[:8])


def test_optunas_log_level_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("optuna").setLevel(logging.INFO)
    problem = problem_of(SPACE, n_trials=20)
    OptunaSearcher(problem, NSGA2).ask(history_of(SPACE.sample(np.random.default_rng(0), 8), SPACE), 1)
    assert logging.getLogger("optuna").level == logging.INFO
    assert "study created" not in capfd.readouterr().err


def test_importing_it_imports_no_optuna() -> None:
    code = "import sys, autopeft.search.optuna_searcher; sys.exit('optuna' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
