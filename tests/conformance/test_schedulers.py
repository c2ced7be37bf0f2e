"""What every scheduler promises, whatever it does inside."""

import pickle

import numpy as np
import pytest

from autopeft.search.scheduler import AbstractScheduler
from autopeft.search.schedulers import SCHEDULERS, Fidelity, make_scheduler
from autopeft.search.trial import History, TrialState
from tests.search.curves import OBJECTIVES, played, row, trial

EPOCHS = 9
pytestmark = pytest.mark.parametrize("name", sorted(SCHEDULERS))


def scheduler(name: str) -> AbstractScheduler:
    return make_scheduler(Fidelity(scheduler=name), OBJECTIVES, epochs=EPOCHS)


def story(name: str, *, promote: bool = True) -> History:
    rng = np.random.default_rng(3)
    goals = rng.uniform(0.5, 0.9, 40)
    curves = [[goal - 0.4 * 0.6**epoch for epoch in range(1, EPOCHS + 1)] for goal in goals]
    return played(scheduler(name), curves, [int(one) for one in rng.integers(10, 100, 40)], promote=promote)


def test_the_first_trial_is_trained_to_its_end(name: str) -> None:
    assert story(name).trials[0].state is TrialState.COMPLETED


def test_a_trial_that_is_better_in_everything_is_trained_to_its_end(name: str) -> None:
    history = story(name)
    best = trial(41, (), 1)
    for epoch in range(1, EPOCHS):
        whole = History(trials=(*history.trials, best))
        assert scheduler(name).judge(whole, 41, row(epoch, 0.95, 1)) is None
        best = trial(41, [0.95] * epoch, 1)


def test_the_same_history_gives_the_same_decisions(name: str) -> None:
    history = story(name)
    assert story(name) == history
    one, other = scheduler(name), pickle.loads(pickle.dumps(scheduler(name)))
    for number in range(3):
        assert one.judge(history, 41, row(1, 0.3 * number, 20)) == other.judge(history, 41, row(1, 0.3 * number, 20))
    assert one.resumable(history) == other.resumable(history)


def test_a_reason_names_the_epoch_and_is_one_line(name: str) -> None:
    for one in story(name).in_state(TrialState.PRUNED):
        assert one.pruning is not None
        assert one.pruning.rung == len(one.measurements) < EPOCHS
        assert str(one.pruning.rung) in one.pruning.because
        assert "\n" not in one.pruning.because


def test_only_stopped_trials_that_may_go_on_do(name: str) -> None:
    history = story(name, promote=False)
    for number in scheduler(name).resumable(history):
        pruning = history.trials[number].pruning
        assert pruning is not None
        assert not pruning.final
    assert list(scheduler(name).resumable(story(name))) == []


def test_an_empty_history_has_nothing_to_go_on_with(name: str) -> None:
    assert list(scheduler(name).resumable(History())) == []
