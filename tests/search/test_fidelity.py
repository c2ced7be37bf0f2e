from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from autopeft.objectives.objective import METRICS
from autopeft.objectives.pareto import Array
from autopeft.search.belief import Belief
from autopeft.search.fidelity import AtFullBudget, fit_rungs, rung_outcomes
from autopeft.search.observations import outcomes
from autopeft.search.surrogate import fit
from autopeft.search.trial import History, Pruning, Trial, TrialState
from tests.search.curves import row, trial
from tests.search.support import accuracy_of, problem_of, space_of

ACCURACY = METRICS["accuracy"]
SPACE = space_of("mixed")
CONFIGURATIONS = SPACE.sample(np.random.default_rng(5), 120)
PAUSED = Pruning(rung=1, because="for the test", final=False)
Early = Callable[[int, float], float]


def rungs(number: int, end: float) -> float:
    """A first epoch that tells the end: 0.15 lower, give or take a hundredth."""
    return end - 0.15 + 0.01 * float(np.random.default_rng([7, number]).normal())


def misleading(number: int, end: float) -> float:
    """A first epoch that has nothing to do with the end."""
    return float(np.random.default_rng([8, number]).uniform(0.4, 0.7))


def story(early: Early, *, done: int, stopped: int) -> History:
    """`done` whole trials of four epochs and `stopped` ones of one epoch."""
    trials: list[Trial] = []
    for number in range(done + stopped):
        end = accuracy_of(CONFIGURATIONS[number], SPACE)
        first, whole = early(number, end), number < done
        state = TrialState.COMPLETED if whole else TrialState.PRUNED
        curve = [first, 0.5 * (first + end), 0.5 * (first + end), end] if whole else [first]
        parameters = SPACE.parameters(CONFIGURATIONS[number])
        one = trial(0, curve, parameters, state=state, pruning=None if whole else PAUSED)
        trials.append(replace(one, number=number, configuration=CONFIGURATIONS[number]))
    return History(trials=tuple(trials))


def error(posterior: Callable[[Array], tuple[Array, Array]]) -> float:
    """Of whole trials that nobody has seen, relative to their spread."""
    unseen = CONFIGURATIONS[80:]
    truth = np.array([-accuracy_of(one, SPACE) for one in unseen])
    mean, _ = posterior(np.array([SPACE.features(one) for one in unseen]))
    return float(np.sqrt(((mean - truth) ** 2).mean()) / truth.std())


def errors(early: Early) -> tuple[float, float]:
    """Of the surrogate of all rungs, and of one that knows whole trials alone."""
    history = story(early, done=15, stopped=45)
    whole = History(trials=history.completed)
    found = outcomes(whole, ACCURACY)
    x = np.array([SPACE.features(one) for one in found.configurations])
    alone = fit(x, found.losses, seed=0)
    return error(fit_rungs(SPACE, history, ACCURACY, seed=0).posterior), error(alone.posterior)


def test_a_first_rung_that_tells_the_end_teaches_nearly_as_much_as_whole_trials() -> None:
    ours, alone = errors(rungs)
    assert ours < 0.7 * alone


def test_a_first_rung_that_misleads_costs_little() -> None:
    ours, alone = errors(misleading)
    assert ours < 1.15 * alone


def test_every_rung_is_a_row_and_whole_trials_stand_at_the_end() -> None:
    found = rung_outcomes(story(rungs, done=3, stopped=2), ACCURACY)
    np.testing.assert_allclose(found.levels, [1, 1, 1, 0, 0, 0, 0, 0])
    gain = np.mean(
        [accuracy_of(CONFIGURATIONS[n], SPACE) - rungs(n, accuracy_of(CONFIGURATIONS[n], SPACE)) for n in range(3)]
    )
    for place, number in ((3, 3), (5, 0)):
        early = rungs(number, accuracy_of(CONFIGURATIONS[number], SPACE))
        assert found.configurations[place] == CONFIGURATIONS[number]
        assert found.losses[place] == pytest.approx(-early - gain)


def test_a_running_trial_tells_what_it_has_measured() -> None:
    history = story(rungs, done=3, stopped=2)
    running = replace(
        history.trials[4], number=5, configuration=CONFIGURATIONS[5], state=TrialState.RUNNING, pruning=None
    )
    found = rung_outcomes(History(trials=(*history.trials, running)), ACCURACY)
    assert CONFIGURATIONS[5] in found.configurations
    silent = replace(running, measurements=())
    assert CONFIGURATIONS[5] not in rung_outcomes(History(trials=(*history.trials, silent)), ACCURACY).configurations


def test_stopped_trials_count_with_what_others_gained_from_there() -> None:
    history = story(lambda _, end: end - 0.25, done=3, stopped=1)
    found = outcomes(history, ACCURACY)
    assert found.losses[3] == pytest.approx(-accuracy_of(CONFIGURATIONS[3], SPACE))
    assert found.observed == (True, True, True, False)


def test_a_belief_rests_on_all_rungs_once_a_trial_was_stopped() -> None:
    problem = problem_of(SPACE, ("accuracy", "parameters"))
    assert isinstance(Belief.of(problem, story(rungs, done=6, stopped=3)).process, AtFullBudget)
    assert not isinstance(Belief.of(problem, story(rungs, done=6, stopped=0)).process, AtFullBudget)


def test_a_failed_trial_that_had_passed_a_rung_stands_at_the_end() -> None:
    history = story(rungs, done=3, stopped=2)
    failed = replace(trial(9, [0.6], state=TrialState.FAILED), measurements=(row(1, 0.6, 10),))
    found = rung_outcomes(History(trials=(*history.trials, failed)), ACCURACY)
    assert len(found.configurations) == 8, "a crash says nothing of its configuration"
