import numpy as np
import pytest

from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import METRICS
from autopeft.search.believed import believe, best_believed, updated
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from tests.studies.support import rank_of, small_space

ACCURACY = METRICS["accuracy"]


def trial(number: int, configuration: Configuration, accuracy: float) -> Trial:
    measured = Measurement(
        epoch=1,
        metrics={"accuracy": accuracy},
        train_loss=1.0,
        train_seconds=1.0,
        evaluation_seconds=0.1,
        tokens=10,
        peak_bytes=1,
        parameters=1,
    )
    return Trial(
        number=number, configuration=configuration, state=TrialState.COMPLETED, measurements=(measured,), predicted={}
    )


def noisy(space: SearchSpace, rng: np.random.Generator, *, n: int, noise: float) -> tuple[History, np.ndarray]:
    """Trials whose accuracy grows with the rank, and the truth of each."""
    drawn = list({one.id: one for one in space.sample(rng, n)}.values())
    truth = np.array([0.6 + 0.2 * np.log1p(rank_of(one)) / np.log(41) for one in drawn])
    rows = zip(drawn, truth + noise * rng.normal(size=len(drawn)), strict=True)
    return History(trials=tuple(trial(n, one, float(seen)) for n, (one, seen) in enumerate(rows))), truth


def test_what_is_believed_is_nearer_to_the_truth_than_what_was_seen() -> None:
    space, rng = small_space(), np.random.default_rng(0)
    seen_errors, believed_errors, curse = [], [], []
    for seed in range(3):
        told, truth = noisy(space, rng, n=40, noise=0.05)
        beliefs = believe(space, told, ACCURACY, noise=0.05**2, seed=seed)
        seen = np.array([one.final.metrics["accuracy"] for one in told if one.final])
        means = np.array([beliefs[one.number][0] for one in told])
        seen_errors.append(np.abs(seen - truth).mean())
        believed_errors.append(np.abs(means - truth).mean())
        curse.append((seen.max() - truth[seen.argmax()], means.max() - truth[means.argmax()]))
    assert np.mean(believed_errors) < 0.6 * np.mean(seen_errors)
    lucky, drawn_in = np.mean(curse, axis=0)
    assert lucky > 0.05, "the best of forty noisy scores is too good to be true"
    assert abs(drawn_in) < lucky / 2


def test_the_best_is_the_best_believed_and_without_beliefs_the_best_seen() -> None:
    space = small_space()
    rows = space.sample(np.random.default_rng(1), 3)
    trials = [trial(n, one, score) for n, (one, score) in enumerate(zip(rows, (0.7, 0.9, 0.8), strict=True))]
    assert best_believed(trials, {}, ACCURACY) is trials[1]
    assert best_believed(trials, {0: (0.72, 0.1), 1: (0.75, 0.1), 2: (0.78, 0.1)}, ACCURACY) is trials[2]
    assert best_believed([], {}, ACCURACY) is None
    assert believe(space, History(trials=tuple(trials)), ACCURACY, seed=0) == {}, "three say too little"


def test_new_runs_and_belief_are_weighed_by_their_precision() -> None:
    mean, deviation = updated((0.8, 0.2), [0.6, 0.6], noise=0.02)
    assert mean == pytest.approx(0.8 - 0.8 * 0.2)
    assert deviation == pytest.approx((0.8 * 0.01) ** 0.5)
    assert updated(None, [0.5, 0.7], noise=0.02) == pytest.approx((0.6, 0.1))
    assert updated((0.8, 0.0), [0.6], noise=0.02)[0] == pytest.approx(0.7), "a search saw it once"
    assert updated((0.8, 0.1), [0.6], noise=0.0) == (0.6, 0.0)
