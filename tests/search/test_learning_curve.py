from collections.abc import Sequence
from dataclasses import replace

import pytest

from autopeft.objectives.objective import resolve_objectives
from autopeft.search.learning_curve import MIN_CURVES, LearningCurveRule
from autopeft.search.trial import History, Trial, TrialState
from tests.search.curves import OBJECTIVES, row, trial

RULE = LearningCurveRule(OBJECTIVES, epochs=4)
CURVE = (0.6, 0.7, 0.75, 0.8)
"""Gains 0.2 after its first epoch, 0.1 after its second."""


def done(*curves: Sequence[float], parameters: int = 10) -> list[Trial]:
    return [trial(number, one, parameters, state=TrialState.COMPLETED) for number, one in enumerate(curves)]


def after(rows: list[Trial], *accuracies: float, parameters: int = 10) -> tuple[History, int, float]:
    running = trial(20, accuracies[:-1], parameters)
    return History(trials=(*rows, running)), 20, accuracies[-1]


def stopped(rule: LearningCurveRule, rows: list[Trial], *accuracies: float, parameters: int = 10) -> str | None:
    history, number, now = after(rows, *accuracies, parameters=parameters)
    pruning = rule.judge(history, number, row(len(accuracies), now, parameters))
    return None if pruning is None else pruning.because


def test_a_trial_stops_when_the_largest_gain_that_was_seen_does_not_bring_it_to_the_front() -> None:
    rows = done(*[CURVE] * MIN_CURVES)
    assert stopped(RULE, rows, 0.61) is None, "0.61 and the gain of 0.2 are beyond 0.8"
    assert stopped(RULE, rows, 0.59) == "after epoch 1: trial 0 would dominate it even at accuracy 0.79"
    history, number, now = after(rows, 0.59)
    pruning = RULE.judge(history, number, row(1, now, 10))
    assert pruning is not None
    assert pruning.final


def test_a_trial_that_is_cheaper_goes_on() -> None:
    rows = done(*[CURVE] * MIN_CURVES)
    assert stopped(RULE, rows, 0.1, parameters=9) is None
    assert stopped(RULE, rows, 0.1, parameters=11) is not None


def test_one_that_rises_fast_goes_on() -> None:
    rows = done(*[CURVE] * MIN_CURVES)
    assert stopped(RULE, rows, 0.65, 0.66) is not None, "0.66 and the gain of 0.1"
    assert stopped(RULE, rows, 0.58, 0.66) is None, "twice the step of 0.08 it has just made"


def test_one_late_bloomer_keeps_the_others_going() -> None:
    rows = done(*[CURVE] * MIN_CURVES, (0.2, 0.3, 0.4, 0.8))
    assert stopped(RULE, rows, 0.5, 0.5) is None
    assert stopped(RULE, rows, 0.2, 0.2) is not None


def test_nothing_is_stopped_on_thin_evidence_before_the_minimum_or_at_the_end() -> None:
    assert stopped(RULE, done(*[CURVE] * (MIN_CURVES - 1)), 0.1) is None
    later = LearningCurveRule(OBJECTIVES, epochs=4, minimum=2)
    rows = done(*[CURVE] * MIN_CURVES)
    assert stopped(later, rows, 0.1) is None
    assert stopped(later, rows, 0.1, 0.1) is not None
    assert stopped(RULE, rows, 0.1, 0.1, 0.1, 0.1) is None


def test_its_own_equals_are_no_reason_to_stop() -> None:
    flat = done(*[(0.6,) * 4] * MIN_CURVES)
    assert stopped(RULE, flat, 0.6) is None
    assert stopped(RULE, flat, 0.599) is not None


def test_seconds_grow_with_the_epochs() -> None:
    rule = LearningCurveRule(resolve_objectives(("accuracy", "train_seconds"), metric="accuracy"), epochs=4)
    rows = done(*[(0.6,) * 4] * MIN_CURVES)
    running = trial(20, ())
    for seconds, goes_on in ((1.9, True), (2.0, False)):
        now = replace(row(2, 0.5, 10), train_seconds=seconds)
        assert (rule.judge(History(trials=(*rows, running)), 20, now) is None) == goes_on, "the others took 4"


@pytest.mark.parametrize("names", [("parameters",), ("parameters", "memory")])
def test_known_objectives_alone_need_no_curve(names: tuple[str, ...]) -> None:
    rule = LearningCurveRule(resolve_objectives(names, metric="accuracy"), epochs=4)
    rows = done(*[CURVE] * MIN_CURVES)
    history, number, now = after(rows, 0.9)
    assert rule.judge(history, number, row(1, now, 11)) is not None
    assert rule.judge(history, number, row(1, now, 9)) is None
