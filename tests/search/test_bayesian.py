import logging

import numpy as np
import pytest

from autopeft.objectives.front import Front
from autopeft.search import belief
from autopeft.search.bayesian import BayesianSearcher
from autopeft.search.initial_design import DESIGN, initial_design
from autopeft.search.observations import front_points
from autopeft.search.random_search import RandomSearcher
from autopeft.search.searcher import SearchProblem
from autopeft.search.surrogate import SurrogateError
from autopeft.search.trial import History, TrialState
from autopeft.spaces.space import SearchSpace
from tests.search.support import history_of, problem_of, run, space_of


def volumes(problem: SearchProblem, space: SearchSpace, histories: list[History]) -> list[float]:
    """Hypervolume of each history, all with the reference of all their trials together."""
    groups = [front_points(history, problem.objectives) for history in histories]
    reference = Front.of([point for group in groups for point in group], problem.objectives).reference
    return [Front.of(group, problem.objectives, reference=reference).hypervolume for group in groups]


def test_it_begins_with_the_design() -> None:
    space = space_of("mixed")
    problem = problem_of(space)
    design = initial_design(problem)
    history = run(BayesianSearcher(problem), space, n=DESIGN, batch=4)
    assert [trial.configuration for trial in history] == list(design)


def test_trials_that_were_there_before_replace_part_of_the_design() -> None:
    space = space_of("mixed")
    problem = problem_of(space)
    design = initial_design(problem)
    others = [one for one in space.sample(np.random.default_rng(5), 20) if one not in design]
    warm = history_of([design[0], *others[: DESIGN - 2]], space)
    asked = BayesianSearcher(problem).ask(warm, 3)
    assert asked[0] == design[1]
    assert asked[1] not in design


def test_it_beats_random_search_on_a_known_front() -> None:
    space = space_of("per-layer", n_layers=6)
    problem = problem_of(space, ["accuracy", "parameters"], n_trials=18)
    bayesian, random = volumes(
        problem, space, [run(engine(problem), space, n=18) for engine in (BayesianSearcher, RandomSearcher)]
    )
    assert bayesian > 1.02 * random


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("objectives", [("accuracy", "parameters"), ("accuracy", "parameters", "memory")])
def test_it_beats_random_search_over_seeds_and_spaces(objectives: tuple[str, ...]) -> None:
    gains: list[float] = []
    for name in ("per-layer", "mixed", "sizes"):
        space = space_of(name, n_layers=8)
        for seed in range(3):
            problem = problem_of(space, objectives, seed=seed, n_trials=32)
            found = [run(engine(problem), space, n=32) for engine in (BayesianSearcher, RandomSearcher)]
            bayesian, random = volumes(problem, space, found)
            gains.append(bayesian / random - 1)
    assert np.mean(gains) > 0
    assert np.mean(np.array(gains) > 0) >= 7 / 9


def test_where_the_surrogate_fails_the_design_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SurrogateError("kernel matrix of 12 observations: singular")

    monkeypatch.setattr(belief, "fit", refuse)
    space = space_of("mixed")
    problem = problem_of(space)
    history = run(RandomSearcher(problem), space, n=12)
    with caplog.at_level(logging.INFO, logger="autopeft"):
        asked = BayesianSearcher(problem).ask(history, 3)
    assert len({one.id for one in asked} - history.ids) == 3
    assert "going on with the first design: kernel matrix of 12 observations: singular" in caplog.text


def test_equal_outcomes_everywhere_do_not_stop_it() -> None:
    from dataclasses import replace

    space = space_of("mixed")
    problem = problem_of(space, ["accuracy"])
    history = run(RandomSearcher(problem), space, n=12)
    flat = [
        replace(trial, measurements=(replace(trial.measurements[-1], metrics={"accuracy": 0.5}),)) for trial in history
    ]
    assert len(BayesianSearcher(problem).ask(History(trials=tuple(flat)), 2)) == 2


def test_stopped_trials_count_a_third_towards_the_design() -> None:
    space = space_of("mixed")
    problem = problem_of(space)
    design = initial_design(problem, size=12)
    states = [TrialState.PRUNED] * 6 + [TrialState.COMPLETED]
    told = history_of(design[:7], space, state=lambda number: states[number])
    searcher = BayesianSearcher(problem)
    assert list(searcher.ask(told, 1)) == [design[7]]
    assert searcher.foreseen(told) == 1
    whole = history_of(design[:7], space)
    assert searcher.foreseen(whole) == 0
    assert list(searcher.ask(whole, 1)) != [design[7]]
