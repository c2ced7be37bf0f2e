import numpy as np
import pytest

from autopeft.objectives.objective import resolve_objectives
from autopeft.search.belief import Belief, ordered
from autopeft.search.dearest import dearest
from autopeft.search.surrogate import SurrogateError
from autopeft.search.trial import History, TrialState
from tests.search.support import history_of, problem_of, space_of

SPACE = space_of("mixed")
SEEN = SPACE.sample(np.random.default_rng(0), 20)
NEW = SPACE.sample(np.random.default_rng(1), 40)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("parameters", "accuracy"), "accuracy"),
        (("train_seconds", "parameters", "accuracy"), "accuracy"),
        (("parameters", "train_seconds"), "train_seconds"),
        (("memory", "parameters"), "memory"),
    ],
)
def test_the_task_metric_is_modelled_before_anything_else(names: tuple[str, ...], first: str) -> None:
    found = ordered(resolve_objectives(names, metric="accuracy"))
    assert found[0].name == first
    assert sorted(one.name for one in found) == sorted(names)


def test_the_reference_is_one_and_the_best_seen_zero() -> None:
    belief = Belief.of(problem_of(SPACE), history_of(SEEN, SPACE))
    assert belief.losses.shape == (20, 3)
    np.testing.assert_allclose(belief.losses[:, 1:].min(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(belief.losses[:, 1:].max(axis=0), 1 / 1.1)


def test_what_is_dearer_than_any_trial_is_not_out_of_reach() -> None:
    problem = problem_of(SPACE, ["accuracy", "parameters"])
    small = sorted(SEEN, key=SPACE.parameters)[:8]
    largest = dearest(SPACE, seed=0)
    assert largest is not None
    assert SPACE.parameters(largest) >= max(map(SPACE.parameters, [*SEEN, *NEW]))
    history = history_of(small, SPACE)
    blind, seeing = (Belief.of(problem, history, largest=one).improvement() for one in (None, largest))
    far = [one for one in NEW if SPACE.parameters(one) > 2 * max(map(SPACE.parameters, small))]
    assert (blind(far) == 0.0).all()
    assert (seeing(far) > 0.0).all()


def test_a_lucky_run_is_believed_only_in_part() -> None:
    problem = problem_of(SPACE)
    base = history_of(SEEN, SPACE)
    belief = Belief.of(problem, base)
    assert belief.process is not None
    observed = np.array([-trial.measurements[-1].value("accuracy") for trial in base])
    scaled = (observed - belief.origin[0]) / belief.scale[0]
    assert np.abs(belief.losses[:, 0] - scaled).max() > 0


def test_running_trials_are_fantasised() -> None:
    state = lambda number: TrialState.RUNNING if number >= 15 else TrialState.COMPLETED  # noqa: E731
    problem = problem_of(SPACE)
    with_pending = Belief.of(problem, history_of(SEEN, SPACE, state=state))
    without = Belief.of(problem, history_of(SEEN[:15], SPACE))
    assert len(with_pending.losses) == 20
    running = SEEN[15:]
    assert (with_pending.improvement()(running) <= without.improvement()(running) + 1e-12).all()


def test_a_fantasy_lowers_the_improvement_around_it() -> None:
    belief = Belief.of(problem_of(SPACE), history_of(SEEN, SPACE))
    gains = belief.improvement()(NEW)
    best = NEW[int(np.argmax(gains))]
    after = belief.fantasise([best]).improvement()([best])[0]
    assert after < 0.6 * gains.max()


def test_improvement_is_never_negative_and_somewhere_positive() -> None:
    gains = Belief.of(problem_of(SPACE), history_of(SEEN, SPACE)).improvement()(NEW)
    assert (gains >= 0).all()
    assert gains.max() > 0


def test_with_known_costs_only_the_cheapest_is_best() -> None:
    belief = Belief.of(problem_of(SPACE, ["parameters"]), history_of(SEEN, SPACE))
    assert belief.process is None
    scores = belief.improvement()(NEW)
    assert SPACE.parameters(NEW[int(np.argmax(scores))]) == min(SPACE.parameters(one) for one in NEW)


def test_too_little_to_learn_from_is_said() -> None:
    problem = problem_of(SPACE)
    with pytest.raises(SurrogateError, match="no trial has completed"):
        Belief.of(problem, History())
    with pytest.raises(SurrogateError, match="2 outcomes of accuracy, 3 are needed"):
        Belief.of(problem, history_of(SEEN[:2], SPACE))
