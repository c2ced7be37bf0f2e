import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import SpecError
from autopeft.objectives.objective import Objective
from autopeft.objectives.pareto import crowding_distance, non_dominated_ranks
from autopeft.search.schedulers import Fidelity, make_scheduler
from autopeft.search.successive_halving import SuccessiveHalving, rungs_of
from autopeft.search.trial import History, Pruning, TrialState
from tests.search.curves import OBJECTIVES, played, row, trial

PAUSED = Pruning(rung=1, because="for the test", final=False)


def halving(*rungs: int, eta: int = 3, objectives: tuple[Objective, ...] = OBJECTIVES) -> SuccessiveHalving:
    return SuccessiveHalving(objectives, rungs=rungs or (1, 3), eta=eta)


def at_first_rung(*accuracies: float, parameters: int = 10) -> History:
    return History(trials=tuple(trial(number, [value], parameters) for number, value in enumerate(accuracies)))


def test_the_rungs_are_powers_below_the_last_epoch() -> None:
    assert rungs_of(minimum=1, reduction=3, epochs=27) == (1, 3, 9)
    assert rungs_of(minimum=2, reduction=2, epochs=10) == (2, 4, 8)
    assert rungs_of(minimum=4, reduction=3, epochs=4) == ()


def test_one_in_eta_goes_on() -> None:
    worse, better = row(1, 0.5, 10), row(1, 0.75, 10)
    history = at_first_rung(0.8, 0.7, 0.6, 0.55, 0.52)
    assert halving().judge(history, 9, worse) is not None
    assert halving().judge(history, 9, better) is None, "second of six, and two go on"
    pruning = halving(eta=6).judge(history, 9, better)
    assert pruning is not None
    assert pruning == Pruning(rung=1, because="after epoch 1: place 2 of 6, the best goes on", final=False)


def test_nobody_is_stopped_between_rungs() -> None:
    assert halving().judge(at_first_rung(0.8, 0.8, 0.8), 9, row(2, 0.1, 99)) is None


def test_known_costs_keep_a_trial_that_is_worse_in_the_metric() -> None:
    history = History(trials=tuple(trial(n, [0.8 - 0.01 * n], 100 + n) for n in range(6)))
    assert halving().judge(history, 9, row(1, 0.5, 200)) is not None
    assert halving().judge(history, 9, row(1, 0.5, 10)) is None, "the smallest of all"


def test_rank_comes_before_crowding() -> None:
    # On the front 0 and 1 are the ends and 2 lies between; 3 is dominated but has no neighbours at all.
    history = History(trials=(trial(0, [0.9], 90), trial(1, [0.6], 10), trial(2, [0.85], 80), trial(3, [0.5], 95)))
    assert halving(eta=2).judge(history, 9, row(1, 0.4, 96)) is not None
    orders = halving(eta=2)._order([(one.number, one.measurements[0]) for one in history])
    assert orders == [0, 1, 2, 3]


def test_failed_trials_are_in_no_rung_and_stopped_ones_are() -> None:
    failed = History(trials=tuple(trial(n, [0.9], 1, state=TrialState.FAILED) for n in range(5)))
    assert halving().judge(failed, 9, row(1, 0.5, 10)) is None
    stopped = History(trials=tuple(trial(n, [0.9], 1, state=TrialState.PRUNED, pruning=PAUSED) for n in range(5)))
    assert halving().judge(stopped, 9, row(1, 0.5, 10)) is not None


def test_a_stopped_trial_goes_on_when_there_is_room() -> None:
    rows = [trial(0, [0.9, 0.9, 0.9]), trial(1, [0.8], state=TrialState.PRUNED, pruning=PAUSED)]
    rows += [trial(n, [0.7], state=TrialState.PRUNED, pruning=PAUSED) for n in range(2, 3)]
    assert list(halving().resumable(History(trials=tuple(rows)))) == []
    more = [*rows, trial(3, [0.6], state=TrialState.PRUNED, pruning=PAUSED)]
    assert list(halving().resumable(History(trials=tuple(more)))) == [1]
    final = Pruning(rung=1, because="dominated", final=True)
    more[1] = trial(1, [0.8], state=TrialState.PRUNED, pruning=final)
    assert list(halving().resumable(History(trials=tuple(more)))) == []


def test_the_highest_rung_goes_on_first() -> None:
    high = Pruning(rung=3, because="for the test", final=False)
    rows = [trial(n, [0.7] * 3, 50, state=TrialState.COMPLETED) for n in range(5)]
    rows += [trial(5, [0.8] * 3, 50, state=TrialState.PRUNED, pruning=high)]
    rows += [trial(n, [0.9], 50, state=TrialState.PRUNED, pruning=PAUSED) for n in range(6, 9)]
    assert halving().resumable(History(trials=tuple(rows)))[0] == 5


@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4]))
def test_with_resumption_a_rung_ends_as_synchronous_halving_would_choose(seed: int, eta: int) -> None:
    """Asynchronous halving with resumption has every trial beyond a rung that is in the best 1/eta of all in it."""
    rng = np.random.default_rng(seed)
    curves = np.sort(rng.uniform(0.4, 0.9, (12, 4)), axis=1).tolist()
    parameters = [int(one) for one in rng.integers(10, 200, 12)]
    history = played(halving(1, eta=eta), curves, parameters, promote=True)
    losses = np.array([[-curve[0], count] for curve, count in zip(curves, parameters, strict=True)])
    ranks = non_dominated_ranks(losses)
    crowd = [float(crowding_distance(losses[ranks == ranks[n]])[int((ranks[:n] == ranks[n]).sum())]) for n in range(12)]
    order = sorted(range(12), key=lambda n: (ranks[n], -crowd[n], n))
    done = {one.number for one in history.completed}
    assert set(order[: 12 // eta]) <= done


def test_halving_spends_a_fraction_and_keeps_the_front_where_curves_do_not_cross() -> None:
    rng = np.random.default_rng(0)
    goals, parameters = rng.uniform(0.5, 0.9, 40), [int(one) for one in rng.integers(10, 100, 40)]
    curves = [[goal - 0.4 * 0.6**epoch for epoch in range(1, 10)] for goal in goals]
    scheduler = make_scheduler(Fidelity(), OBJECTIVES, epochs=9)
    history = played(scheduler, curves, parameters, promote=True)
    spent = sum(len(one.measurements) for one in history)
    assert spent < 0.7 * 9 * 40
    best = int(np.argmax(goals))
    smallest = int(np.argmin(parameters))
    assert {best, smallest} <= {one.number for one in history.completed}


@pytest.mark.parametrize(
    ("rungs", "eta", "words"),
    [((), 3, "at least one"), ((3, 1), 3, "ascending"), ((0, 1), 3, "epochs of 1 or more"), ((1,), 1, "eta: got 1")],
)
def test_rungs_that_are_none_are_refused(rungs: tuple[int, ...], eta: int, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        SuccessiveHalving(OBJECTIVES, rungs=rungs, eta=eta)


@pytest.mark.parametrize(
    ("fidelity", "words"),
    [
        (Fidelity(scheduler="asha"), "schedulers are all, curves, halving"),
        (Fidelity(reduction=1), "reduction: got 1; 2 or more"),
        (Fidelity(minimum=0), "minimum: got 0; 1 or more"),
        (Fidelity(minimum=9), "minimum: got 9, and training.epochs is 9"),
    ],
)
def test_settings_without_a_rung_are_refused(fidelity: Fidelity, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make_scheduler(fidelity, OBJECTIVES, epochs=9)


def test_without_a_fidelity_every_trial_trains_to_its_end() -> None:
    history = played(make_scheduler(None, OBJECTIVES, epochs=3), [[0.1, 0.1, 0.1]] * 9, [10] * 9)
    assert len(history.completed) == 9
