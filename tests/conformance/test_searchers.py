"""What every search engine promises, whatever it does inside."""

import subprocess
import sys

import pytest

from autopeft.search.table import SEARCHERS, make_searcher
from autopeft.search.trial import History, TrialState
from tests.search.support import history_of, problem_of, run, space_of

SLOW = ("gp",)
"""Engines that think for seconds; what they have in common with the others is tested through those."""
ENGINES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in sorted(SEARCHERS)]
STATES = [TrialState.COMPLETED, TrialState.COMPLETED, TrialState.FAILED, TrialState.RUNNING, TrialState.PRUNED]

pytestmark = pytest.mark.parametrize("engine", ENGINES)


@pytest.mark.parametrize("space", ["mixed", "sizes", "per-layer"])
def test_proposals_are_valid_distinct_and_new(engine: str, space: str) -> None:
    bound = space_of(space)
    searcher = make_searcher(engine, problem_of(bound, n_trials=24))
    history = run(searcher, bound, n=14)
    assert len(history.ids) == 14
    assert all(bound.contains(trial.configuration) for trial in history)


def test_eight_at_once_are_distinct_and_new(engine: str) -> None:
    bound = space_of("mixed")
    searcher = make_searcher(engine, problem_of(bound, n_trials=24))
    history = run(searcher, bound, n=10)
    batch = searcher.ask(history, 8)
    assert len({one.id for one in batch} - history.ids) == len(batch) == 8


@pytest.mark.parametrize("count", [0, 3, 12])
def test_the_same_history_gives_the_same_proposals(engine: str, count: int) -> None:
    bound = space_of("mixed")
    history = run(make_searcher("random", problem_of(bound)), bound, n=count)
    first, second = (make_searcher(engine, problem_of(space_of("mixed"))).ask(history, 3) for _ in range(2))
    assert [one.id for one in first] == [one.id for one in second]


def test_asking_changes_nothing(engine: str) -> None:
    bound = space_of("mixed")
    searcher = make_searcher(engine, problem_of(bound))
    history = run(make_searcher("random", problem_of(bound)), bound, n=12)
    first = searcher.ask(history, 2)
    searcher.ask(History(), 5)
    assert [one.id for one in searcher.ask(history, 2)] == [one.id for one in first]


def test_another_seed_gives_other_proposals(engine: str) -> None:
    bound = space_of("mixed")
    history = run(make_searcher("random", problem_of(bound)), bound, n=12)
    batches = [make_searcher(engine, problem_of(bound, seed=seed)).ask(history, 4) for seed in (0, 1)]
    assert [one.id for one in batches[0]] != [one.id for one in batches[1]]


def test_constraints_hold(engine: str) -> None:
    bound = space_of("mixed", constraints=("parameters <= 1500",))
    history = run(make_searcher(engine, problem_of(bound, n_trials=20)), bound, n=12, batch=3)
    assert len(history) == 12
    assert max(bound.parameters(trial.configuration) for trial in history) <= 1500


@pytest.mark.parametrize("batch", [1, 4])
def test_a_small_space_is_proposed_to_the_last_configuration_and_then_no_more(engine: str, batch: int) -> None:
    bound = space_of("tiny")
    size = bound.size().configurations
    history = run(make_searcher(engine, problem_of(bound, n_trials=50)), bound, n=50, batch=batch)
    assert len(history.ids) == len(history) == size == 15


def test_a_small_space_under_constraints_ends_too(engine: str) -> None:
    bound = space_of("tiny", constraints=("parameters <= 512",))
    history = run(make_searcher(engine, problem_of(bound, n_trials=50)), bound, n=50, batch=4)
    assert 0 < len(history) < 15
    assert all(bound.admits(trial.configuration) for trial in history)


def test_failed_running_and_pruned_trials_are_taken_in(engine: str) -> None:
    bound = space_of("mixed")
    configurations = [trial.configuration for trial in run(make_searcher("random", problem_of(bound)), bound, n=20)]
    history = history_of(configurations, bound, state=lambda number: STATES[number % len(STATES)])
    batch = make_searcher(engine, problem_of(bound)).ask(history, 2)
    assert len({one.id for one in batch} - history.ids) == 2


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.FAILED])
def test_a_history_without_one_completed_trial_is_no_obstacle(engine: str, state: TrialState) -> None:
    bound = space_of("mixed")
    configurations = [trial.configuration for trial in run(make_searcher("random", problem_of(bound)), bound, n=15)]
    history = history_of(configurations, bound, state=lambda _: state)
    assert len(make_searcher(engine, problem_of(bound, n_trials=15)).ask(history, 2)) == 2


@pytest.mark.parametrize(
    "objectives",
    [
        ("accuracy",),
        ("parameters",),
        ("accuracy", "parameters"),
        ("parameters", "memory"),
        ("memory", "accuracy", "train_seconds"),
        ("accuracy", "parameters", "memory", "train_seconds"),
    ],
)
def test_any_set_of_objectives_will_do(engine: str, objectives: tuple[str, ...]) -> None:
    bound = space_of("sizes")
    history = run(make_searcher(engine, problem_of(bound, objectives, n_trials=24)), bound, n=9)
    assert len(history.ids) == 9


def test_none_are_asked_for_none(engine: str) -> None:
    assert list(make_searcher(engine, problem_of(space_of("mixed"))).ask(History(), 0)) == []


def test_another_process_proposes_the_same(engine: str) -> None:
    code = (
        "from autopeft.search.table import make_searcher\n"
        "from tests.search.support import problem_of, run, space_of\n"
        "bound = space_of('mixed')\n"
        "history = run(make_searcher('random', problem_of(bound)), bound, n=12)\n"
        f"print(','.join(one.id for one in make_searcher({engine!r}, problem_of(bound)).ask(history, 2)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    bound = space_of("mixed")
    history = run(make_searcher("random", problem_of(bound)), bound, n=12)
    assert found == ",".join(one.id for one in make_searcher(engine, problem_of(bound)).ask(history, 2))
