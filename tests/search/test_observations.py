from dataclasses import replace

import numpy as np

from autopeft.objectives.objective import COSTS, METRICS, resolve_objectives
from autopeft.search.observations import front_of, front_points, outcomes
from autopeft.search.trial import FailureKind, History, TrialState
from tests.search.support import accuracy_of, measured, space_of, trial_of

SPACE = space_of("mixed")
CONFIGURATIONS = SPACE.sample(np.random.default_rng(0), 6)
OBJECTIVES = resolve_objectives(["accuracy", "parameters"], metric="accuracy")


def history(*rows: tuple[TrialState, FailureKind]) -> History:
    pairs = zip(CONFIGURATIONS, rows, strict=False)
    return History(trials=tuple(trial_of(i, one, SPACE, state=s, kind=k) for i, (one, (s, k)) in enumerate(pairs)))


DONE = (TrialState.COMPLETED, FailureKind.OOM)


def test_completed_and_pruned_trials_count_as_measured() -> None:
    found = outcomes(history(DONE, (TrialState.PRUNED, FailureKind.OOM)), METRICS["accuracy"])
    np.testing.assert_allclose(found.losses, [-accuracy_of(one, SPACE) for one in CONFIGURATIONS[:2]])
    assert found.observed == (True, False)


def test_diverged_and_out_of_memory_count_as_the_worst_seen() -> None:
    kinds = [(TrialState.FAILED, FailureKind.DIVERGED), (TrialState.FAILED, FailureKind.OOM)]
    found = outcomes(history(DONE, DONE, *kinds), METRICS["accuracy"])
    assert len(found) == 4
    assert found.losses[2] == found.losses[3] == found.losses[:2].max()
    assert found.configurations[2] == CONFIGURATIONS[2]


def test_crashes_timeouts_and_running_trials_say_nothing() -> None:
    kinds = [
        (TrialState.FAILED, FailureKind.CRASHED),
        (TrialState.FAILED, FailureKind.TIMEOUT),
        (TrialState.RUNNING, FailureKind.OOM),
    ]
    assert len(outcomes(history(DONE, *kinds), METRICS["accuracy"])) == 1


def test_failures_alone_teach_nothing() -> None:
    assert len(outcomes(history((TrialState.FAILED, FailureKind.OOM)), METRICS["accuracy"])) == 0


def test_an_accident_is_cut_to_the_limit() -> None:
    trials = [trial_of(number, one, SPACE) for number, one in enumerate(CONFIGURATIONS)]
    slow = replace(measured(CONFIGURATIONS[0], SPACE), train_seconds=1e6)
    trials[0] = replace(trials[0], measurements=(slow,))
    assert outcomes(History(trials=tuple(trials)), COSTS["train_seconds"]).losses.max() < 20


def test_trials_that_lack_an_objective_or_have_nan_are_no_points() -> None:
    trials = [trial_of(number, one, SPACE) for number, one in enumerate(CONFIGURATIONS[:3])]
    blind = replace(measured(CONFIGURATIONS[0], SPACE), metrics={"loss": 1.0})
    broken = replace(measured(CONFIGURATIONS[1], SPACE), metrics={"accuracy": float("nan")})
    trials[0], trials[1] = replace(trials[0], measurements=(blind,)), replace(trials[1], measurements=(broken,))
    found = History(trials=tuple(trials))
    assert [point.trial for point in front_points(found, OBJECTIVES)] == [2]
    assert [point.trial for point in front_of(found, OBJECTIVES)] == [2]
    assert len(outcomes(found, METRICS["accuracy"])) == 1
